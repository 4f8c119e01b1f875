"""The two noise processes against closed forms: round trips, moments and Gaussian data.

For Gaussian data the best model is known.
"""

import pytest
import torch

from proav.config import Config
from proav.diffusion import DDPM, RectifiedFlow, make_process
from proav.diffusion.modalities import denoising_loss, mix_given, spread_to_planes
from proav.diffusion.noise import uniforms_for
from proav.errors import UserError

SHAPE = (4, 3, 6, 5, 5)
PROCESSES = [RectifiedFlow(), RectifiedFlow("uniform"), DDPM(), DDPM(eta=1.0)]
TIMES = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [1.0, 0.125]], dtype=torch.float64)


def pair(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64), torch.randn(
        shape, generator=generator, dtype=torch.float64
    )


def shares(process, time: float) -> tuple[float, float]:
    """(signal, noise) factors of z_t at one time, from the formulas."""
    if isinstance(process, RectifiedFlow):
        return 1 - time, time
    product = 1.0
    for k in range(round(time * process.num_steps)):
        root = process.beta_start**0.5 + (process.beta_end**0.5 - process.beta_start**0.5) * k / (
            process.num_steps - 1
        )
        product *= 1 - root**2
    return product**0.5, (1 - product) ** 0.5


@pytest.mark.parametrize("process", PROCESSES)
def test_noisy_planes_are_the_formula_at_each_modalitys_time(process):
    clean, noise = pair()
    noisy = process.add_noise(clean, noise, TIMES)
    for clip, times in enumerate(TIMES.tolist()):
        for modality, time in enumerate(times):
            planes = slice(3 * modality, 3 * modality + 3)
            signal, spread = shares(process, time)
            torch.testing.assert_close(
                noisy[clip, :, planes], signal * clean[clip, :, planes] + spread * noise[clip, :, planes]
            )


@pytest.mark.parametrize("process", PROCESSES)
def test_time_zero_is_exactly_clean(process):
    clean, noise = pair()
    assert torch.equal(process.add_noise(clean, noise, torch.zeros(4, 2)), clean)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("time", [1.0, 0.5, 0.125, 0.0])
def test_clean_and_noise_come_back_from_the_target(process, time):
    """The methods of a process for solvers agree with those for training."""
    clean, noise = pair()
    times = torch.full((4, 2), time, dtype=torch.float64)
    noisy, target = process.add_noise(clean, noise, times), process.target(clean, noise)
    signal, spread = process.shares(time)
    torch.testing.assert_close(noisy, signal * clean + spread * noise)
    made_clean, made_noise = process.estimates(noisy, target, time)
    torch.testing.assert_close(made_clean, clean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made_noise, noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_moments_of_noisy_gaussian_data(process):
    mean, std = 0.7, 0.4
    clean, noise = pair(shape=(64, 3, 6, 12, 12))
    noisy = process.add_noise(mean + std * clean, noise, torch.full((64, 2), 0.5))
    signal, spread = shares(process, 0.5)
    assert noisy.mean().item() == pytest.approx(signal * mean, abs=0.01)
    assert noisy.std().item() == pytest.approx((signal**2 * std**2 + spread**2) ** 0.5, rel=0.01)


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_of_a_zero_prediction_has_a_closed_form(process):
    mean, std = 0.5, 2.0
    clean, noise = pair(shape=(64, 3, 6, 12, 12))
    clean = mean + std * clean
    loss = (
        denoising_loss(
            torch.zeros_like(clean), process.target(clean, noise), torch.zeros(64, 2, dtype=torch.bool)
        )
        .mean()
        .item()
    )
    assert loss == pytest.approx(process.zero_prediction_loss(mean**2 + std**2), rel=0.01)


def test_zero_prediction_losses_of_normalized_latents():
    assert RectifiedFlow().zero_prediction_loss() == 2.0 and DDPM().zero_prediction_loss() == 1.0


@pytest.mark.parametrize("process", PROCESSES)
def test_schedule_runs_from_noise_to_clean(process):
    for steps in (1, 7, 30):
        times = process.times_of(steps)
        assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0
        assert all(later < earlier for earlier, later in zip(times, times[1:]))


def test_more_ddim_steps_than_the_process_has_are_refused():
    with pytest.raises(UserError, match="generate.steps=11.*at most generate.steps=10"):
        DDPM(num_steps=10).times_of(11)


@pytest.mark.parametrize("shift", [None, 1.0, 2.5, 10.0])
def test_all_numbers_of_steps_up_to_the_most_have_times_of_their_own(shift):
    process = DDPM(num_steps=100)
    most = process.most_steps(shift)
    for steps in range(1, most + 1):
        assert len(process.times_of(steps, shift)) == steps + 1
    with pytest.raises(UserError, match=f"at most generate.steps={most}" + (", or a" if shift else "$")):
        process.times_of(2 * most, shift)


def test_drawn_times_follow_their_distribution():
    uniforms = torch.stack([uniforms_for(0, i, 1, purpose="test") for i in range(20_000)]).flatten()
    logits = RectifiedFlow().draw_times(uniforms).logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.03) and logits.std().item() == pytest.approx(
        1, abs=0.03
    )
    assert torch.equal(RectifiedFlow("uniform").draw_times(uniforms), uniforms)
    steps = DDPM(num_steps=10).draw_times(uniforms) * 10
    assert torch.bincount(steps.round().long(), minlength=11).tolist()[0] == 0
    torch.testing.assert_close(
        torch.bincount(steps.round().long())[1:] / 20_000, torch.full((10,), 0.1), atol=0.01, rtol=0
    )


def test_the_extreme_uniforms_are_legal_times():
    extremes = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
    for process in PROCESSES:
        times = process.draw_times(extremes)
        assert (0 <= times).all() and (times <= 1).all()


def test_given_planes_carry_no_loss_and_clips_count_equally():
    prediction, target = pair()
    given = torch.tensor([[False, False], [True, False], [False, True], [False, False]])
    loss = denoising_loss(prediction, target, given)
    error = (prediction - target).square()
    expected = [error[0].mean(), error[1, :, 3:].mean(), error[2, :, :3].mean(), error[3].mean()]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_given_modality_enters_as_lone_planes():
    joint, lone = pair()
    mixed = mix_given(
        joint, lone, torch.tensor([[False, False], [True, False], [False, True], [False, False]])
    )
    assert torch.equal(mixed[0], joint[0])
    assert torch.equal(mixed[1, :, :3], lone[1, :, :3]) and torch.equal(mixed[1, :, 3:], joint[1, :, 3:])
    assert torch.equal(mixed[2, :, 3:], lone[2, :, 3:]) and torch.equal(mixed[2, :, :3], joint[2, :, :3])


def test_values_per_modality_spread_to_its_three_planes():
    assert spread_to_planes(torch.tensor([[1, 2]])).flatten().tolist() == [1, 1, 1, 2, 2, 2]


def test_configuration_chooses_the_process():
    assert make_process(Config()) == RectifiedFlow("logit_normal")
    assert make_process(Config.model_validate({"diffusion": {"objective": "ddpm", "ddim_eta": 0.5}})) == DDPM(
        1000, 0.0015, 0.0195, 0.5
    )


def test_the_loss_counts_each_value_that_a_plane_really_has_once():
    prediction, target = pair()
    own = torch.zeros(prediction.shape[1:3], dtype=torch.bool)
    for plane, channels in enumerate((3, 1, 2, 1, 1, 2)):
        own[:channels, plane] = True
    given = torch.tensor([[False, False], [True, False], [False, True], [False, False]])
    error = (prediction - target).square()
    video, audio = own.clone(), own.clone()
    video[:, 3:], audio[:, :3] = False, False
    expected = [error[clip][made].mean() for clip, made in enumerate((own, audio, video, own))]
    torch.testing.assert_close(denoising_loss(prediction, target, given, own), torch.stack(expected))


@pytest.mark.parametrize("shift", [1.0, 1.5, 4.0])
def test_shifted_times_are_those_of_noise_that_counts_shift_times_as_much(shift):
    """The noise-to-signal ratio t' / (1 - t') is `shift` times t / (1 - t); the ends stay."""
    plain, shifted = RectifiedFlow().times_of(10), RectifiedFlow(shift=shift).times_of(10)
    assert shifted[0] == 1 and shifted[-1] == 0
    for time, moved in zip(plain[1:-1], shifted[1:-1], strict=True):
        assert moved / (1 - moved) == pytest.approx(shift * time / (1 - time))
    uniforms = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    odds = [RectifiedFlow(shift=each).draw_times(uniforms).logit() for each in (1.0, shift)]
    torch.testing.assert_close(odds[1] - odds[0], torch.full_like(uniforms, shift).log())
