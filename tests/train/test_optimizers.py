"""Muon: singular values, torch's own implementation, fused weights, and which weights it trains."""

import pytest
import torch
from torch import nn

from proav.errors import CheckpointError
from proav.models.layers import hidden_map, hidden_matrices
from proav.models.mdsa import MDSA
from proav.models.stdit import STDiT
from proav.train.optimizers import (
    Sliced,
    check_moments,
    make_optimizer,
    moments_of,
    newton_schulz,
    orthogonalized,
    share_out,
)
from tests.tiny import tiny_config
from tests.train.toy import ToyModel, toy_train

FP32, BF16 = torch.float32, torch.bfloat16


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_singular_values(values, rows, columns):
    """A matrix U diag(values) V', and U and V."""
    u, v = (torch.linalg.qr(matrix(side, len(values), seed=side))[0] for side in (rows, columns))
    return u @ values.diag() @ v.T, u, v


@pytest.mark.parametrize("shape", [(48, 48), (96, 24), (24, 96)])
def test_singular_values_go_through_the_polynomial_and_directions_stay(shape):
    values = torch.logspace(0, -1.5, min(shape))
    given, u, v = with_singular_values(values, *shape)
    expected = values / values.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    assert 0.68 < expected.min() and expected.max() < 1.14  # the band that the coefficients were chosen for
    fine = newton_schulz(given[None], FP32)[0]
    torch.testing.assert_close(fine, u @ expected.diag() @ v.T, rtol=0, atol=1e-5)
    coarse = torch.linalg.svdvals(newton_schulz(given[None], BF16)[0].float())
    assert 0.6 < coarse.min() and coarse.max() < 1.25


def test_zeros_stay_zeros_and_scale_does_not_matter():
    assert not newton_schulz(torch.zeros(1, 4, 6), FP32).any()
    small, large = (newton_schulz(scale * matrix(1, 8, 8), FP32) for scale in (1e-4, 1.0))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def muon_steps(weight, gradients, optimizer, parameter):
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - weight


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_steps_equal_those_of_torch(shape):
    weight, gradients = matrix(*shape), [matrix(*shape, seed=seed) for seed in range(1, 4)]
    parameter = nn.Parameter(weight.clone())
    theirs = torch.optim.Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.2)
    expected = muon_steps(weight, gradients, theirs, parameter)
    layer = hidden_map(nn.Linear(shape[1], shape[0]))
    layer.weight.data.copy_(weight)
    train = toy_train(optimizer="muon", muon_momentum=0.9, muon_weight_decay=0.2, precision="bf16")
    ours = make_optimizer(nn.Sequential(layer), train)
    for group in ours.param_groups:
        group["lr"] = 0.1
    moved = muon_steps(weight, gradients, ours, layer.weight)
    torch.testing.assert_close(moved, expected, rtol=0, atol=0.01 * expected.abs().max().item())


def test_stacked_parts_are_orthogonalized_apart():
    parts = [matrix(24, 16, seed=seed) * 10**seed for seed in range(3)]
    apart = torch.cat([orthogonalized(part, 1, FP32) for part in parts])
    torch.testing.assert_close(orthogonalized(torch.cat(parts), 3, FP32), apart, rtol=1e-4, atol=1e-5)
    assert (orthogonalized(torch.cat(parts), 1, FP32) - apart).abs().max() > 0.1


def test_work_is_shared_evenly_and_whole_matrices_stay():
    sliced = [Sliced(shape=(8, side), parts=1, offset=0, sizes=(4 * side,) * 2) for side in (8, 4, 2, 6)]
    shares = [sum(matrix.work for matrix in share if matrix) for share in zip(*share_out(sliced, 2))]
    assert shares == [8 * 8 * 8, 8 * 6 * 6 + 8 * 4 * 4 + 8 * 2 * 2]
    whole = [Sliced(shape=(8, 8), parts=1, offset=0, sizes=(64, 0)) for _ in range(3)]
    assert share_out(whole, 2) == [(matrix, None) for matrix in whole]


def test_other_weights_are_trained_as_by_adamw():
    models = [ToyModel() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, name in zip(models, ("adamw", "muon"), strict=True):
        optimizer = make_optimizer(model, toy_train(optimizer=name, weight_decay=0.1))
        for seed in range(3):
            for weight in model.parameters():
                weight.grad = matrix(*weight.shape, seed=seed)
            optimizer.step()
    hidden = hidden_matrices(models[0])
    for name, weight in models[0].named_parameters():
        assert torch.equal(weight, models[1].get_parameter(name)) == (name not in hidden)


def test_hidden_matrices_of_stdit_are_those_of_its_blocks():
    for attention, names in (("divided", ("spatial", "temporal")), ("full", ("joint",))):
        model = STDiT(tiny_config(f"stdit.attention={attention}"), num_labels=2)
        expected = {f"blocks.0.{name}.qkv.weight": 3 for name in names}
        expected |= {f"blocks.0.{name}.out.weight": 1 for name in names}
        assert hidden_matrices(model) == expected | {"blocks.0.mlp.0.weight": 1, "blocks.0.mlp.2.weight": 1}


def test_hidden_matrices_of_mdsa_are_those_of_attentions_mlps_and_linear_planes():
    model = MDSA(tiny_config())
    hidden, weights = hidden_matrices(model), dict(model.named_parameters())
    assert all(weights[name].ndim == 2 and len(weights[name]) % parts == 0 for name, parts in hidden.items())
    maps = ("to_query", "to_key_value", "to_output", "mlp.expand", "mlp.contract", "mlp.0", "mlp.2")
    others = ("embed.linear", "expand.linear", "to_latents", "from_latents", "positions", "fusion_KC")
    others += ("gain", "mean.value", "refine.enter", "refine.up", "refine.leave")
    network = {name for name in weights if name.endswith(tuple(f"{end}.weight" for end in maps))}
    blocks = {name for name in weights if ".analysis." in name or ".synthesis." in name}
    # a matrix and a gain for analysis and for synthesis, of three planes in each of two streams
    assert len(blocks) == 24
    assert set(hidden) == network | {name for name in blocks if name.endswith(".weight")}
    for word in others:  # into the network, out of it, bottleneck, tables, gains and means, refiners
        assert any(word in name for name in weights) and not any(word in name for name in hidden), word
    fused = {name for name, parts in hidden.items() if parts == 2}
    assert fused == {name for name in hidden if name.endswith(("to_key_value.weight", "mlp.expand.weight"))}


def test_missing_state_is_reported():
    model, train = ToyModel(), toy_train(optimizer="muon")
    names = [f"{moment}.{name}" for name, moments in moments_of(model, train).items() for moment in moments]
    tensors = dict.fromkeys(names, torch.zeros(1))
    check_moments(tensors, model, train)
    del tensors["momentum_buffer.tall.weight"]
    with pytest.raises(CheckpointError, match="lacks 1 of 15 .*, such as momentum_buffer.tall.weight"):
        check_moments(tensors, model, train)
