"""The conditions of ST-DiT: one or several labels, a vector, a sequence of vectors."""

import dataclasses

import pytest
import torch

from proav.diffusion.conditions import Conditions
from proav.models.stdit.embeddings import Conditioning
from proav.models.stdit.transformer import STDiT
from proav.text import NO_LABEL
from tests.models.stdit.test_stdit import BATCH, NUM_LABELS, inputs, small_config, trained_looking

SHAPES = {"caption": 6, "words": [5, 8]}
NAMES = pytest.mark.parametrize("name", SHAPES)


def told_model(**stdit) -> tuple[STDiT, tuple]:
    """(a model with random weights for both kinds of vectors, inputs): only the first clip has vectors."""
    config = small_config(vectors=SHAPES, **stdit)
    noisy, times, conditions = inputs(config)
    generator = torch.Generator().manual_seed(3)
    vectors = {
        "caption": torch.randn(BATCH, 6, generator=generator),
        "words": torch.randn(BATCH, 5, 8, generator=generator),
    }
    vectors["words"][:, 3:] = 0
    for values in vectors.values():
        values[1] = 0
    return trained_looking(STDiT(config, NUM_LABELS)), (
        noisy,
        times,
        dataclasses.replace(conditions, vectors=vectors),
    )


def test_several_labels_are_the_mean_of_their_rows_and_one_is_its_row_to_the_bit():
    told = Conditioning(small_config(), NUM_LABELS)
    table = told.label.weight
    labels = torch.tensor(
        [[1, NO_LABEL, NO_LABEL], [0, 2, NO_LABEL], [2, 1, 0], [NUM_LABELS, NO_LABEL, NO_LABEL]]
    )
    means = told._mean_of_labels(labels)
    assert torch.equal(means[0], table[1]) and torch.equal(means[3], table[NUM_LABELS])
    assert torch.equal(means[1], (table[0] + table[2]) / 2)
    torch.testing.assert_close(means[2], table[:3].mean(0))
    times = torch.tensor([[0.3, 0.7]])
    with torch.no_grad():
        two, first, second = (told(times, Conditions(torch.tensor([row]))) for row in ([0, 2], [0], [2]))
    torch.testing.assert_close(two, (first + second) / 2)


def test_gradients_of_single_labels_are_those_of_a_plain_embedding():
    told, labels = Conditioning(small_config(), NUM_LABELS), torch.tensor([1, 0, 1, NUM_LABELS])
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    (told._mean_of_labels(labels[:, None]) * weights).sum().backward()
    ours, told.label.weight.grad = told.label.weight.grad, None
    (told.label(labels) * weights).sum().backward()
    assert torch.equal(ours, told.label.weight.grad)


@NAMES
def test_maps_of_vectors_begin_as_if_they_were_not_there(name):
    model, (noisy, times, conditions) = told_model()
    with torch.no_grad():
        model.conditioning.vectors["of_caption"].weight.zero_()
        for block in model.blocks:
            block.cross.out.weight.zero_()
        only = dataclasses.replace(conditions, vectors={name: conditions.vectors[name]})
        untold = dataclasses.replace(conditions, vectors={})
        assert torch.equal(model(noisy, times, only), model(noisy, times, untold))
    fresh = STDiT(small_config(vectors=SHAPES), NUM_LABELS)
    assert not fresh.conditioning.vectors["of_caption"].weight.any()
    assert not any(block.cross.out.weight.any() for block in fresh.blocks)


def test_a_single_vector_moves_no_other_weight_of_a_new_model():
    models = []
    for vectors in ({}, {"caption": 6}):
        torch.manual_seed(0)
        models.append(STDiT(small_config(vectors=vectors), NUM_LABELS).state_dict())
    without, with_vector = models
    assert with_vector.keys() - without.keys() == {"conditioning.vectors.of_caption.weight"}
    assert all(torch.equal(values, with_vector[name]) for name, values in without.items())


@NAMES
@pytest.mark.parametrize("attention", ["divided", "full"])
def test_vectors_change_the_clip_that_has_them_and_zeros_are_none(name, attention):
    model, (noisy, times, conditions) = told_model(attention=attention)
    only = dataclasses.replace(conditions, vectors={name: conditions.vectors[name]})
    untold = dataclasses.replace(conditions, vectors={})
    with torch.no_grad():
        told, plain = model(noisy, times, only), model(noisy, times, untold)
        zeros = {name: torch.zeros_like(values) for name, values in conditions.vectors.items()}
        assert torch.equal(model(noisy, times, dataclasses.replace(untold, vectors=zeros)), plain)
        larger = {name: 7 * values for name, values in only.vectors.items()}
        size = model(noisy, times, dataclasses.replace(untold, vectors=larger))
    assert not torch.allclose(told[0], plain[0]) and torch.equal(told[1], plain[1])
    torch.testing.assert_close(size, told, rtol=1e-6, atol=1e-6)  # the size of a vector plays no part


@pytest.mark.parametrize("attention", ["divided", "full"])
def test_clips_with_and_without_vectors_and_labels_do_not_depend_on_their_batch(attention):
    model, (noisy, times, conditions) = told_model(attention=attention)
    conditions = dataclasses.replace(conditions, labels_BK=torch.tensor([[0, 2], [1, NO_LABEL]]))
    with torch.no_grad():
        together = model(noisy, times, conditions)
        first = model(noisy[:1], times[:1], conditions.rows(slice(0, 1)))
        second = model(noisy[1:], times[1:], Conditions(torch.tensor([1])))
    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-6, atol=1e-6)


def test_the_configured_maximum_length_changes_nothing():
    model, (noisy, times, conditions) = told_model()
    longer = STDiT(small_config(vectors={"caption": 6, "words": [9, 8]}), NUM_LABELS).double().eval()
    longer.load_state_dict(model.state_dict())
    words = torch.nn.functional.pad(conditions.vectors["words"], (0, 0, 0, 4))
    padded = dataclasses.replace(conditions, vectors=conditions.vectors | {"words": words})
    with torch.no_grad():
        torch.testing.assert_close(
            longer(noisy, times, padded), model(noisy, times, conditions), rtol=1e-6, atol=1e-6
        )


def test_a_few_optimizer_steps_reach_every_weight():
    config = small_config(vectors=SHAPES)
    model, (noisy, times, conditions) = STDiT(config, NUM_LABELS), told_model()[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noisy, times = noisy.float(), times.float()
    for _ in range(4):
        optimizer.zero_grad()
        (model(noisy, times, conditions) - noisy.flip(0)).square().mean().backward()
        optimizer.step()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.any()] == []
