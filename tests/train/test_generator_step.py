"""The ST-DiT step: the loss of a known prediction, given streams, and random draws for each clip."""

import pytest
import torch

from proav.diffusion.tasks import draw_tasks
from proav.geometry import LatentGeometry
from proav.models.mdsa.planes import masked_condition
from proav.models.stdit import STDiT
from proav.train.generator_step import NOISE_BUCKETS, GeneratorStep
from tests.tiny import LABELS, randomize, tiny_config
from tests.train.tiny_run import torch_engine

MEAN, STD = 0.25, 0.5


def build(*overrides, random_weights=False):
    config = tiny_config(*overrides)
    torch.manual_seed(0)
    model = STDiT(config, len(LABELS))
    shape = (6, config.mdsa.latent_channels)
    step = GeneratorStep(
        config,
        num_labels=len(LABELS),
        latent_mean=torch.full(shape, MEAN).tolist(),
        latent_std=torch.full(shape, STD).tolist(),
    )
    return torch_engine(randomize(model, 3) if random_weights else model, config, "stdit"), step, config


def random_batch(config, clips=8, first=0):
    shape, generator = LatentGeometry.from_config(config).stack_shape, torch.Generator().manual_seed(1)
    joint, lone = (torch.randn(clips, *shape, generator=generator) * STD + MEAN for _ in range(2))
    return {
        "joint": joint,
        "lone": lone,
        "label": torch.arange(clips) % len(LABELS),
        "position": torch.arange(first, first + clips),
    }


def means(parts):
    return {name: float(total / count) for name, (total, count) in parts.items() if count}


def test_an_untrained_model_has_the_loss_of_predicting_zero():
    engine, step, config = build()
    output = step.loss(engine, random_batch(config, clips=64), 0)
    assert output.loss.item() == pytest.approx(step.process.zero_prediction_loss(), rel=0.02)
    parts = means(output.parts)
    assert parts["video_loss"] == pytest.approx(2.0, rel=0.05) and parts["audio_loss"] == pytest.approx(
        2.0, rel=0.05
    )
    counts = sum(
        output.parts[f"loss_noise_{bucket + 1}_of_{NOISE_BUCKETS}"][1] for bucket in range(NOISE_BUCKETS)
    )
    assert counts == output.parts["video_loss"][1] + output.parts["audio_loss"][1]


def test_normalized_latents_have_mean_0_and_deviation_1():
    _, step, config = build()
    normalized = step.scale.normalize(random_batch(config, clips=64)["joint"])
    assert normalized.mean().item() == pytest.approx(
        0, abs=0.02
    ) and normalized.std().item() == pytest.approx(1, rel=0.02)


def test_a_given_stream_enters_as_its_lone_planes_and_is_not_a_target():
    """With sound given (a2v), the joint sound planes change nothing; the lone ones do."""
    engine, step, config = build("diffusion.task_weights={a2v: 1.0}", random_weights=True)
    batch = random_batch(config)
    loss = step.loss(engine, batch, 0)
    assert loss.parts["audio_loss"][1] == 0
    joint_changed, lone_changed = ({**batch, kind: batch[kind].clone()} for kind in ("joint", "lone"))
    joint_changed["joint"][:, :, 3:] += 1
    lone_changed["lone"][:, :, 3:] += 1
    assert torch.equal(step.loss(engine, joint_changed, 0).loss, loss.loss)
    assert not torch.equal(step.loss(engine, lone_changed, 0).loss, loss.loss)


def test_a_masked_clip_is_a_condition_and_all_planes_are_targets():
    engine, step, config = build("diffusion.task_weights={inpaint: 1.0}", random_weights=True)
    batch = random_batch(config)
    known = torch.rand(8, 2, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    batch |= {"masked": batch["lone"], "known": known}
    output = step.loss(engine, batch, 0)
    assert output.parts["video_loss"][1] == output.parts["audio_loss"][1] == 8
    seen = []
    forward = engine.forward
    engine.forward = lambda noisy, times, told: seen.append(told.masked_BEPNN) or forward(noisy, times, told)
    step.loss(engine, batch, 0)
    assert torch.equal(seen[0], masked_condition((batch["masked"] - MEAN) / STD, known))
    alone = [
        step.loss(engine, {name: values[i : i + 1] for name, values in batch.items()}, 0).loss
        for i in range(8)
    ]
    torch.testing.assert_close(output.loss, sum(alone) / 8)
    other = step.loss(engine, batch | {"known": ~known}, 0)
    assert not torch.allclose(other.loss, output.loss, rtol=1e-3)


def test_the_loss_of_a_batch_is_the_mean_of_its_clips_alone():
    engine, step, config = build(random_weights=True)
    batch = random_batch(config)
    alone = [
        step.loss(engine, {name: values[i : i + 1] for name, values in batch.items()}, 0).loss
        for i in range(8)
    ]
    torch.testing.assert_close(step.loss(engine, batch, 0).loss, sum(alone) / 8)


def test_labels_are_dropped_by_clip():
    engine, step, config = build("stdit.label_dropout=0.5", random_weights=True)
    seen = []
    engine.forward = lambda noisy, times, told: seen.append(told.labels_BK[:, 0]) or noisy
    batch = random_batch(config)
    step.loss(engine, batch, 0)
    expected = torch.where(
        draw_tasks(config.seed, batch["position"], config).drop_label_B, len(LABELS), batch["label"]
    )
    assert (
        torch.equal(seen[0], expected) and (expected == len(LABELS)).any() and (expected != len(LABELS)).any()
    )
