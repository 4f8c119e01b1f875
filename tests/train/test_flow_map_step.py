"""The flow map's step: it starts as its teacher, learns guidance, and treats each clip for itself."""

import pytest
import torch

from proav.diffusion.conditions import Conditions
from proav.diffusion.flow_maps import draw_time_pairs
from proav.diffusion.modalities import denoising_loss
from proav.diffusion.tasks import draw_tasks
from proav.generation.denoise import guided_prediction
from proav.models.stdit import STDiT
from proav.train.flow_map_step import SPAN_BUCKETS, STEADY, FlowMapStep
from tests.tiny import LABELS, randomize, tiny_config
from tests.train.test_generator_step import MEAN, STD, random_batch
from tests.train.tiny_run import torch_engine


def build(*overrides):
    config = tiny_config("stdit.depth=3", *overrides)
    torch.manual_seed(0)
    teacher, student = (STDiT(config, len(LABELS)) for _ in range(2))
    randomize(teacher, 3)
    student.load_state_dict(teacher.state_dict())
    shape = (6, config.mdsa.latent_channels)
    step = FlowMapStep(
        config,
        teacher=teacher,
        num_labels=len(LABELS),
        latent_mean=torch.full(shape, MEAN).tolist(),
        latent_std=torch.full(shape, STD).tolist(),
    )
    return torch_engine(student, config, "distill"), step, config


def test_with_one_time_a_flow_map_is_the_flow_to_the_bit_and_a_later_one_reaches_the_last_third_alone():
    engine, step, config = build()
    batch, times = random_batch(config), torch.full((8, 2), 0.75)
    inputs = batch["joint"], times, Conditions(batch["label"])
    seen = []
    for block in engine.module.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    with torch.no_grad():
        velocity = step.teacher(*inputs)
        same, other = engine.module(*inputs, times), engine.module(*inputs, times / 2)
    assert torch.equal(same, velocity) and not torch.equal(other, velocity)
    assert [torch.equal(one, two) for one, two in zip(seen[:3], seen[3:], strict=True)] == [True, True, False]


def test_the_loss_of_a_batch_is_the_mean_of_its_clips_alone():
    engine, step, config = build()
    batch = random_batch(config)
    alone = [
        step.loss(engine, {name: values[i : i + 1] for name, values in batch.items()}, 0).loss
        for i in range(8)
    ]
    whole = step.loss(engine, batch, 0)
    torch.testing.assert_close(whole.loss, sum(alone) / 8)
    names = [f"squared_error_span_{number + 1}_of_{SPAN_BUCKETS}" for number in range(SPAN_BUCKETS)]
    assert sum(whole.parts[name][1] for name in names) == whole.parts["squared_error"][1] == 8
    torch.testing.assert_close(sum(whole.parts[name][0] for name in names), whole.parts["squared_error"][0])


def test_over_one_step_of_time_the_target_is_the_teachers_guided_velocity():
    engine, step, config = build(
        "distill.guidance_scale=2.5", "distill.audio_guidance_scale=1.5", "distill.time_step=1"
    )
    batch = random_batch(config)
    output = step.loss(engine, batch, 0)
    draw = draw_tasks(config.seed, batch["position"], config)
    shift = config.distill.time_shift
    times, next_times = draw_time_pairs(config.seed, batch["position"], draw.names, draw.given_B2, shift)
    assert shift == 6
    labels = torch.where(draw.drop_label_B, len(LABELS), batch["label"])
    state = step.add_noise(batch, draw, torch.device("cpu"))
    clean, noise = state.clean_BDPNN, state.noise_BDPNN
    noisy = step.process.add_noise(clean, noise, times)
    with torch.no_grad():
        scales = torch.tensor([2.5, 1.5]).expand(8, 2)
        guided = guided_prediction(step.teacher, noisy, times, Conditions(labels), scales)
        prediction = engine.module(noisy, times, Conditions(labels), next_times)
    errors_B = denoising_loss(prediction, guided, draw.given_B2, step.own_DP)
    total, count = output.parts["squared_error"]
    torch.testing.assert_close(total / count, errors_B.mean())
    torch.testing.assert_close(output.loss.detach(), (errors_B / (errors_B + STEADY)).mean())


def test_the_gradient_is_the_students_alone():
    engine, step, config = build()
    step.loss(engine, random_batch(config), 0).loss.backward()
    assert all(parameter.grad is None for parameter in step.teacher.parameters())
    assert all(parameter.grad is not None for parameter in engine.module.parameters())


def test_what_is_given_stays_as_it_is_and_carries_no_loss():
    engine, step, config = build("diffusion.task_weights={v2a: 1.0}")
    seen, forward = [], engine.forward
    engine.forward = lambda *inputs: seen.append(inputs) or forward(*inputs)
    loss = step.loss(engine, random_batch(config), 0).loss
    for state, times, _, next_times in seen:
        assert torch.equal(state[:, :, :3], seen[0][0][:, :, :3])
        assert (times[:, 0] == 0).all() and (next_times[:, 0] == 0).all()
    assert len(seen) == 2 and loss.item() == pytest.approx(
        step.loss(engine, random_batch(config), 0).loss.item()
    )
