"""The MDSA step: when each term enters, which weights get gradients, and random draws for each clip."""

import pytest
import torch

from proav.errors import UserError
from proav.generation.coder import pixels_to_unit
from proav.geometry import PLANE_NAMES, ClipGeometry, LatentGeometry
from proav.models.mdsa import MDSA
from proav.train.autoencoder_step import AutoencoderStep, draw_exchange, draw_frames, draw_noise, draw_shown
from proav.train.ema import ExponentialMovingAverage
from proav.train.engines import NonFiniteError
from proav.train.loop import LoopState, run_loop
from tests.tiny import tiny_config
from tests.train.tiny_run import torch_engine

CPU = torch.device("cpu")


def build(*overrides):
    config = tiny_config("mdsa.loss.adversarial_start_clips=8", *overrides)
    torch.manual_seed(0)
    return torch_engine(MDSA(config), config), AutoencoderStep(config, device=CPU), config


def random_batch(config, clips=4, first=0):
    clip, generator = ClipGeometry.from_config(config), torch.Generator().manual_seed(1)
    video = torch.randint(
        0, 256, (clips, clip.num_frames, clip.height, clip.width, 3), generator=generator, dtype=torch.uint8
    )
    mel = torch.rand(clips, *clip.mel_shape, generator=generator) * 2 - 1
    return {"video": video, "mel": mel, "position": torch.arange(first, first + clips)}


def halves_of(batch):
    return [{name: values[part] for name, values in batch.items()} for part in (slice(0, 2), slice(2, 4))]


def test_discriminators_enter_at_their_clip_count():
    engine, step, config = build()
    before, after = (step.loss(engine, random_batch(config), clips).parts for clips in (7, 8))
    assert set(after) - set(before) == {
        f"{name}_{term}" for name in ("video", "audio") for term in ("adversarial", "feature_matching")
    }
    assert set(before) == {"video_l1", "video_gradient", "mel_l1", "mel_difference", "video_psnr"}


def test_the_loss_is_the_weighted_sum_of_its_parts():
    engine, step, config = build()
    output, loss = step.loss(engine, random_batch(config), 8), config.mdsa.loss
    weights = {
        "video_l1": loss.pixel,
        "video_gradient": loss.multi_scale_gradient,
        "mel_l1": loss.mel,
        "mel_difference": loss.mel_difference,
    }
    weights |= {
        f"{name}_{term}": getattr(loss, term)
        for name in ("video", "audio")
        for term in ("adversarial", "feature_matching")
    }
    expected = sum(weight * output.parts[name][0] / output.parts[name][1] for name, weight in weights.items())
    torch.testing.assert_close(output.loss.detach(), expected.to(output.loss.dtype))


def test_terms_of_weight_zero_are_left_out_and_squares_come_in():
    words = ("pixel_squared=3", "mel_squared=5", "multi_scale_gradient=0", "mel_difference=0", "mel=0")
    engine, step, config = build(*(f"mdsa.loss.{word}" for word in (*words, "audio=0.5")))
    batch = random_batch(config)
    output = step.loss(engine, batch, 0)
    assert set(output.parts) == {"video_l1", "video_l2", "mel_l1", "mel_l2", "video_psnr"}
    values = {name: total / count for name, (total, count) in output.parts.items()}
    weighted = 4 * values["video_l1"] + 3 * values["video_l2"] + 0.5 * 5 * values["mel_l2"]
    torch.testing.assert_close(output.loss.detach(), weighted.to(output.loss.dtype))
    video, mel = pixels_to_unit(batch["video"]), batch["mel"]
    exchange = draw_exchange(config.seed, batch["position"].tolist(), config.mdsa.modality_dropout)
    with torch.no_grad():
        video_out, mel_out = engine.forward(video, mel, exchange=exchange)
    torch.testing.assert_close(values["video_l2"], (video_out - video).square().mean())
    torch.testing.assert_close(values["mel_l2"], (mel_out - mel).square().mean())


def test_psnr_is_that_of_the_clamped_pictures():
    engine, step, config = build("mdsa.loss.pixel_squared=1")
    batch = random_batch(config)
    batch["video"] = torch.where(batch["video"] < 128, 0, 255).to(torch.uint8)
    engine.module.linear["video"].mean.value.data.fill_(3.0)  # above all pictures
    parts = step.loss(engine, batch, 0).parts
    white_B = (1 - pixels_to_unit(batch["video"])).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(parts["video_psnr"][0].float(), (10 * torch.log10(4 / white_B)).sum())
    assert parts["video_l2"][0] / 4 > 4  # the loss sees what overshoots


def test_hidden_cells_belong_to_clips_and_are_hidden_in_training_alone():
    masked, whole = tiny_config("mdsa.latent_mask=0.3"), tiny_config()
    positions = list(range(1000))
    shown = draw_shown(masked, positions)
    shapes = LatentGeometry.from_config(masked).plane_shapes
    assert {name: plane.shape for name, plane in shown.items()} == {
        name: (1000, 1, *shapes[name[2:]]) for name in PLANE_NAMES
    }
    share_B = torch.cat([plane.flatten(1) for plane in shown.values()], dim=1).mean(1)
    assert (share_B == 1).float().mean() == pytest.approx(0.7, abs=0.05)
    for hidden in (0.25, 0.5, 0.75):
        assert ((share_B - (1 - hidden)).abs() < 0.125).float().mean() == pytest.approx(0.1, abs=0.03)
    part = draw_shown(masked, positions[7:9])
    assert all(torch.equal(plane, shown[name][7:9]) for name, plane in part.items())

    engine, step, config = build("mdsa.latent_mask=1")
    plain, batch = AutoencoderStep(whole, device=CPU), random_batch(config)
    engine.module.fit_linear_planes([(pixels_to_unit(batch["video"]), batch["mel"])])
    losses = [who.loss(engine, batch, 0).loss.item() for who in (step, step, plain)]
    assert losses[0] == losses[1] and losses[0] > losses[2] + 0.01


def test_latent_noise_belongs_to_clips_and_enters_in_training_alone():
    noisy, quiet = tiny_config("mdsa.latent_noise=0.5", "mdsa.plane_channels.video=[3,2,1]"), tiny_config()
    positions = list(range(300))
    noise = draw_noise(noisy, positions)
    shapes = LatentGeometry.from_config(noisy).plane_shapes
    for (name, plane), depth in zip(noise.items(), (3, 2, 1, 4, 4, 4), strict=True):
        assert plane.shape == (300, depth, *shapes[name[2:]])
        assert plane.std() == pytest.approx(0.5, rel=0.05) and plane.mean().abs() < 0.02
    part = draw_noise(noisy, positions[7:9])
    assert all(torch.equal(plane, noise[name][7:9]) for name, plane in part.items())
    pair = torch.stack([noise["v_HT"].flatten(), noise["a_WT"][:, 0].flatten()])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.05

    engine, step, config = build("mdsa.latent_noise=0.5")
    plain, batch = AutoencoderStep(quiet, device=CPU), random_batch(config)
    engine.module.fit_linear_planes([(pixels_to_unit(batch["video"]), batch["mel"])])
    losses = [who.loss(engine, batch, 0).loss.item() for who in (step, step, plain)]
    assert losses[0] == losses[1] and losses[0] > losses[2] + 0.01
    halves = [step.loss(engine, half, 0).loss for half in halves_of(batch)]
    assert sum(halves).item() / 2 == pytest.approx(losses[0], rel=1e-5)


def test_the_autoencoders_pass_leaves_the_discriminators_alone_and_theirs_leaves_it_alone():
    engine, step, config = build()
    engine.backward(step.loss(engine, random_batch(config), 8).loss)
    assert all(parameter.grad is None for parameter in step.discriminators.parameters())
    assert all(parameter.requires_grad for parameter in step.discriminators.parameters())
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in engine.module.named_parameters()
        if parameter.grad is not None
    }
    before = {name: tensor.clone() for name, tensor in step.discriminators.state_dict().items()}
    step.backward_others(1)
    step.step_others()
    assert all(
        torch.equal(gradients[name], parameter.grad)
        for name, parameter in engine.module.named_parameters()
        if name in gradients
    )
    moved = [
        name
        for name, tensor in step.discriminators.state_dict().items()
        if not torch.equal(tensor, before[name])
    ]
    assert (
        any(name.startswith("video.frame") for name in moved)
        and any(name.startswith("video.clip") for name in moved)
        and any(name.startswith("audio") for name in moved)
    )


def test_discriminators_rest_before_they_enter():
    engine, step, config = build()
    before = {name: tensor.clone() for name, tensor in step.discriminators.state_dict().items()}
    step.loss(engine, random_batch(config), 0)
    step.backward_others(1)
    step.step_others()
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.discriminators.state_dict().items())


def test_discriminators_learn_to_tell():
    engine, step, config = build("mdsa.loss.discriminator_learning_rate=0.01")
    adversarial = []
    for _ in range(12):
        adversarial.append(step.loss(engine, random_batch(config), 8).parts["video_adversarial"][0].item())
        step.backward_others(1)
        step.step_others()
    assert (
        adversarial[-1] > adversarial[0] + 1
    )  # the autoencoder's side of the hinge grows: its clips are recognized


def test_a_broken_discriminator_gradient_stops_before_its_optimizer():
    engine, step, config = build()
    step.loss(engine, random_batch(config), 8)
    step.backward_others(1)
    next(step.discriminators.parameters()).grad[0] = torch.nan
    before = {name: tensor.clone() for name, tensor in step.discriminators.state_dict().items()}
    with pytest.raises(NonFiniteError, match="the discriminators' gradient norm is nan"):
        step.step_others()
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.discriminators.state_dict().items())


def test_a_broken_gradient_of_the_autoencoder_leaves_the_discriminators_alone():
    words = ("num_clips=4", "batch_size=4", "skip_nonfinite=1")
    engine, step, config = build(
        "mdsa.loss.adversarial_start_clips=0", *(f"mdsa.train.{word}" for word in words)
    )
    hook = next(engine.module.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    before = {name: tensor.clone() for name, tensor in step.discriminators.state_dict().items()}

    def train_on_one_batch() -> LoopState:
        average = ExponentialMovingAverage(engine.shards(), half_life_clips=20.0, ramp_up=0.5)
        state, nothing = LoopState(), lambda given: None
        run_loop(step, iter([random_batch(config)]), engine, average, state, report=nothing, save=nothing)
        return state

    assert train_on_one_batch().skipped_in_a_row == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.discriminators.state_dict().items())
    hook.remove()
    assert train_on_one_batch().skipped_in_a_row == 0 and step.optimizer_steps == 1


def test_the_loss_of_a_batch_is_the_mean_over_its_clips():
    engine, step, config = build()
    batch = random_batch(config)
    whole = step.loss(engine, batch, 8).loss
    halves = [step.loss(engine, half, 8).loss for half in halves_of(batch)]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_draws_belong_to_clips():
    positions = list(range(3000))
    frames_B, exchange = draw_frames(0, positions, 4), draw_exchange(0, positions, 0.1)
    assert torch.equal(draw_frames(0, positions[100:110], 4), frames_B[100:110])
    assert torch.equal(draw_exchange(0, positions[100:110], 0.1).to_video_B, exchange.to_video_B[100:110])
    assert torch.bincount(frames_B).tolist() == pytest.approx([750] * 4, rel=0.12)
    cases = (
        torch.stack(
            [
                ~exchange.to_video_B & exchange.to_audio_B,
                exchange.to_video_B & ~exchange.to_audio_B,
                ~exchange.to_video_B & ~exchange.to_audio_B,
            ]
        )
        .double()
        .mean(1)
    )
    assert cases.tolist() == pytest.approx([0.1] * 3, abs=0.02)
    assert (
        draw_exchange(0, positions, 0.0).to_video_B.all()
        and draw_exchange(0, positions, 0.0).to_audio_B.all()
    )


def test_missing_perceptual_weights_are_reported():
    with pytest.raises(UserError, match="no LPIPS weights at nowhere.safetensors"):
        build("mdsa.loss.perceptual_weights=nowhere.safetensors")
