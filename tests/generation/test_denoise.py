"""Sampling with models whose best prediction is known in closed form, then the invariances of the loop."""

import pytest
import torch

from proav.config.reading import config_from_dict
from proav.diffusion import DDPM, RectifiedFlow
from proav.diffusion.conditions import Conditions
from proav.diffusion.noise import noise_batch
from proav.errors import UserError
from proav.generation.denoise import Group, denoise
from proav.generation.sampling_settings import SamplingSettings
from proav.models.stdit import STDiT

SHAPE = (2, 6, 4, 4)
IDENTITIES = [(0, 0), (0, 1), (7, 0), (7, 123_456), (1, 1)]
LABELS = torch.tensor([0, 2, 1, 3, 0])  # 3 is the null label
SCALES = torch.tensor([1.0, 2.5, 1.0, 4.0, 0.0])
PROCESSES = [RectifiedFlow(), DDPM(), DDPM(eta=1.0)]


class GaussianModel(torch.nn.Module):
    """The best prediction for data ~ N(mean, std^2): E[e - z | z_t] for the flow, E[e | z_t] for ddpm."""

    null_label = 0

    def __init__(self, process, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.process, self.mean, self.std = process, mean, std

    def forward(self, noisy, times_B2, conditions):
        ones, zeros = torch.ones_like(noisy), torch.zeros_like(noisy)
        signal, spread = (
            self.process.add_noise(ones, zeros, times_B2.double()),
            self.process.add_noise(zeros, ones, times_B2.double()),
        )
        gain = (noisy - signal * self.mean) / ((signal * self.std) ** 2 + spread**2)
        clean, noise = self.mean + signal * self.std**2 * gain, spread * gain
        return self.process.target(clean, noise)


def sample(
    model,
    process,
    noise,
    *,
    labels_B,
    guidance_scale_B=None,
    given_BDPNN=None,
    identities=None,
    on_step=None,
    **settings,
):
    """The samples of one group. model, process: as in `denoise`; on_step: its on_call.

    noise, given_BDPNN, identities: as in Group.
    labels_B: one label a sample.
    guidance_scale_B: one scale a sample; None: that of the settings.
    settings: of SamplingSettings.
    """
    guidance = None
    if guidance_scale_B is not None:
        ends = torch.tensor([0.0, 1.0]).expand(len(noise), 2)
        guidance = torch.cat([guidance_scale_B[:, None].expand(len(noise), 2), ends], dim=1)
    group = Group(
        SamplingSettings(**settings),
        noise,
        Conditions(labels_B),
        guidance_B4=guidance,
        given_BDPNN=given_BDPNN,
        identities=identities,
    )
    (made,) = denoise(model, process, [group], on_step)
    return made


def gaussian() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, 1, 1, generator=generator, dtype=torch.float64), 0.2 + torch.rand(
        2, 6, 1, 1, generator=generator, dtype=torch.float64
    )


def run(process, model, *, steps, count=5, task="joint", **more):
    noise, labels = noise_batch(IDENTITIES[:count], SHAPE).double(), torch.zeros(count, dtype=torch.long)
    return noise, sample(
        model, process, noise, labels_B=labels, steps=steps, task=task, identities=IDENTITIES[:count], **more
    )


def test_euler_with_the_best_velocity_carries_noise_to_the_data_and_its_error_falls_with_the_steps():
    """The flow of a Gaussian is affine: e -> mean + std e.

    Euler is of first order: doubling the steps halves the error.
    """
    mean, std = gaussian()
    model = GaussianModel(RectifiedFlow(), mean, std)
    errors = []
    for steps in (20, 40, 80, 160):
        noise, result = run(RectifiedFlow(), model, steps=steps)
        errors.append((result - (mean + std * noise)).abs().max().item())
    assert errors[-1] < 0.03
    assert all(1.7 < coarse / fine < 2.4 for coarse, fine in zip(errors, errors[1:]))


def test_ddim_with_the_best_noise_carries_noise_to_the_data_and_its_error_falls_with_the_steps():
    """The probability flow of a Gaussian is affine:

    e -> mean + std (e - sqrt(a) mean) / sqrt(a std^2 + 1 - a), with a at t = 1.
    """
    mean, std = gaussian()
    process = DDPM()
    share = process.signal_shares[-1]
    errors = []
    for steps in (50, 100, 200, 400, 800):
        noise, result = run(process, GaussianModel(process, mean, std), steps=steps)
        truth = mean + std * (noise - share.sqrt() * mean) / (share * std**2 + 1 - share).sqrt()
        errors.append((result - truth).abs().max().item())
    assert errors[-1] < 0.025 and all(fine < 0.65 * coarse for coarse, fine in zip(errors, errors[1:]))


def test_ancestral_sampling_has_the_datas_mean_and_spread():
    mean, std = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    process = DDPM(eta=1.0)
    identities = [(0, index) for index in range(4)]
    noise = noise_batch(identities, (2, 6, 16, 16)).double()
    result = sample(
        GaussianModel(process, mean, std),
        process,
        noise,
        labels_B=torch.zeros(4, dtype=torch.long),
        steps=1000,
        identities=identities,
    )
    assert result.mean().item() == pytest.approx(0.8, abs=0.01) and result.std().item() == pytest.approx(
        0.3, rel=0.04
    )


def test_a_given_modality_conditions_the_other_as_the_joint_gaussian_says():
    """In the data, video = rho audio + sqrt(1 - rho^2) n.

    Sampling the video with the audio a held at time 0 gives rho a + sqrt(1 - rho^2) e.
    """
    rho = 0.8

    class Correlated(GaussianModel):
        def forward(self, noisy, times_B2, conditions):
            assert (times_B2[:, 1] == 0).all()
            self.mean = torch.cat([rho * noisy[:, :, 3:], torch.zeros_like(noisy[:, :, 3:])], dim=2)
            return super().forward(noisy, times_B2, conditions)

    std = torch.full((1, 1, 1), (1 - rho**2) ** 0.5, dtype=torch.float64)
    given = noise_batch(IDENTITIES, SHAPE, purpose="given").double()
    noise, result = run(
        RectifiedFlow(), Correlated(RectifiedFlow(), None, std), steps=400, task="a2v", given_BDPNN=given
    )
    assert torch.equal(result[:, :, 3:], given[:, :, 3:])
    torch.testing.assert_close(
        result[:, :, :3], rho * given[:, :, 3:] + std * noise[:, :, :3], atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    "task, held, free", [("a2v", slice(3, 6), slice(0, 3)), ("v2a", slice(0, 3), slice(3, 6))]
)
@pytest.mark.parametrize("process", PROCESSES)
def test_given_planes_are_held_at_time_zero_and_the_others_are_not_read(process, task, held, free):
    seen = []

    class Watching(GaussianModel):
        def forward(self, noisy, times_B2, conditions):
            seen.append((noisy.clone(), times_B2.clone()))
            return super().forward(noisy, times_B2, conditions)

    mean, std = gaussian()
    given = torch.randn(5, *SHAPE, dtype=torch.float64)
    given[:, :, free] = float("nan")
    _, result = run(process, Watching(process, mean, std), steps=4, task=task, given_BDPNN=given)
    column = 1 if task == "a2v" else 0
    assert all(
        torch.equal(noisy[:, :, held], given[:, :, held]) and (times[:, column] == 0).all()
        for noisy, times in seen
    )
    assert [times[0, 1 - column].item() for _, times in seen] == [
        pytest.approx(time) for time in process.times_of(4)[:-1]
    ]
    assert torch.equal(result[:, :, held], given[:, :, held]) and result.isfinite().all()


class LabelModel(torch.nn.Module):
    """A constant velocity for each label. Euler integrates it exactly in any number of steps."""

    null_label = 3

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
        self.evaluations = 0

    def forward(self, noisy, times_B2, conditions):
        self.evaluations += len(noisy)
        return self.rows[conditions.labels_BK[:, 0]][:, None, None, None, None].expand_as(noisy)


def test_guidance_is_its_formula_per_sample():
    model = LabelModel()
    noise = noise_batch(IDENTITIES, SHAPE).double()
    result = sample(model, RectifiedFlow(), noise, labels_B=LABELS, guidance_scale_B=SCALES, steps=8)
    null, label = model.rows[3], model.rows[LABELS]
    velocity = null + SCALES * (label - null)
    torch.testing.assert_close(result, noise - velocity[:, None, None, None, None])


def test_each_modality_has_its_own_scale():
    model, noise = LabelModel(), noise_batch(IDENTITIES, SHAPE).double()
    result = sample(
        model,
        RectifiedFlow(),
        noise,
        labels_B=LABELS,
        steps=8,
        guidance_scale=3.0,
        audio_guidance_scale=0.5,
    )
    null, label = model.rows[3], model.rows[LABELS]
    video, audio = ((null + scale * (label - null))[:, None, None, None, None] for scale in (3.0, 0.5))
    torch.testing.assert_close(result[:, :, :3], noise[:, :, :3] - video)
    torch.testing.assert_close(result[:, :, 3:], noise[:, :, 3:] - audio)


def test_guidance_of_a_given_modality_costs_nothing():
    noise, given = (noise_batch(IDENTITIES, SHAPE, purpose=name).double() for name in ("noise", "given"))
    for task, evaluations in (("a2v", 5), ("v2a", 9)):  # sample 3 has the null label
        model = LabelModel()
        sample(
            model,
            RectifiedFlow(),
            noise,
            labels_B=LABELS,
            steps=2,
            task=task,
            given_BDPNN=given,
            audio_guidance_scale=2.0,
        )
        assert model.evaluations == 2 * evaluations


class TwoGaussians(GaussianModel):
    """The best prediction for data of a label, and for data without one; both have the same spread."""

    null_label = 1

    def __init__(self, process, means: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__(process, None, std)
        self.means = means

    def forward(self, noisy, times_B2, conditions):
        self.mean = self.means[conditions.labels_BK[:, 0]]
        return super().forward(noisy, times_B2, conditions)


@pytest.mark.parametrize("process", [RectifiedFlow(), DDPM()])
def test_guidance_of_gaussians_moves_their_mean_and_keeps_their_spread(process):
    """Let data be N(m_c, std^2) with the label and N(m_0, std^2) without it.

    Their best predictions are affine in the mean. So v_0 + s (v_c - v_0) is the best prediction for
    N(m_0 + s (m_c - m_0), std^2), and sampling gives exactly what it gives for those data.
    """
    mean, std = gaussian()
    other = mean.flip(0)
    scales = torch.tensor([3.0] * 3 + [1.5] * 3, dtype=torch.float64)[:, None, None]
    guided, plain = TwoGaussians(process, torch.stack([mean, other]), std), other + scales * (mean - other)
    noise, result = run(process, guided, steps=100, guidance_scale=3.0, audio_guidance_scale=1.5)
    _, truth = run(process, GaussianModel(process, plain, std), steps=100)
    torch.testing.assert_close(result, truth)
    if process.objective == "flow":
        assert (result - (plain + std * noise)).abs().max() < 0.1  # of Euler in 100 steps


def test_the_null_label_is_evaluated_only_where_it_matters():
    noise = noise_batch(IDENTITIES, SHAPE).double()
    for scales, per_step in [
        (torch.ones(5), 5),
        (torch.tensor([2.0, 1, 1, 1, 1]), 6),
        (torch.full((5,), 2.0), 9),
    ]:  # sample 3 has the null label
        model = LabelModel()
        sample(model, RectifiedFlow(), noise, labels_B=LABELS, guidance_scale_B=scales, steps=3)
        assert model.evaluations == 3 * per_step


def small_stdit() -> STDiT:
    config = config_from_dict(
        {
            "clip": {"num_frames": 4, "height": 64, "width": 64},
            "mel": {"num_bins": 64},
            "mdsa": {"plane_size": 4, "latent_channels": 2, "multi_scale": {"scales": [1, 2]}},
            "stdit": {"size": "custom", "depth": 2, "width": 24, "num_heads": 2},
        }
    )
    model = STDiT(config, 3)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("task", ["joint", "a2v"])
def test_every_clip_of_a_batch_is_what_it_would_be_alone(process, task):
    """Labels, guidance scales, seeds and given planes differ within the batch."""
    model = small_stdit()
    noise, given = (
        noise_batch(IDENTITIES, SHAPE).double(),
        noise_batch(IDENTITIES, SHAPE, purpose="given").double(),
    )

    def make(rows: list[int]) -> torch.Tensor:
        return sample(
            model,
            process,
            noise[rows],
            labels_B=LABELS[rows],
            guidance_scale_B=SCALES[rows],
            steps=5,
            task=task,
            given_BDPNN=given[rows] if task == "a2v" else None,
            identities=[IDENTITIES[row] for row in rows],
        )

    together, order = make([0, 1, 2, 3, 4]), [3, 0, 4]
    for row in range(5):
        torch.testing.assert_close(make([row])[0], together[row], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(make(order), together[order], rtol=1e-6, atol=1e-6)
    assert torch.equal(make([0, 1, 2, 3, 4]), together)  # the same call, the same bits


def test_the_batch_is_no_matter_in_float32_either():
    model = small_stdit().float()
    noise = noise_batch(IDENTITIES, SHAPE)

    def make(rows: slice) -> torch.Tensor:
        return sample(
            model, RectifiedFlow(), noise[rows], labels_B=LABELS[rows], guidance_scale_B=SCALES[rows], steps=5
        )

    alone = torch.cat([make(slice(row, row + 1)) for row in range(5)])
    torch.testing.assert_close(make(slice(0, 5)), alone, rtol=1e-4, atol=1e-4)


def test_ones_as_scales_equal_no_guidance_to_the_bit():
    model, noise = small_stdit(), noise_batch(IDENTITIES, SHAPE).double()
    plain = sample(model, RectifiedFlow(), noise, labels_B=LABELS, steps=3)
    assert torch.equal(
        plain, sample(model, RectifiedFlow(), noise, labels_B=LABELS, guidance_scale_B=torch.ones(5), steps=3)
    )


def test_progress_is_reported_after_each_step_and_nothing_is_kept_for_autograd():
    told = []
    _, result = run(
        RectifiedFlow(), small_stdit(), steps=3, on_step=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)] and not result.requires_grad


@pytest.mark.parametrize("task", ["independent", "sing"])
def test_a_task_that_cannot_be_sampled_is_refused_with_those_that_can(task):
    with pytest.raises(
        UserError, match=f"generate.task={task} is not available; expected one of joint, a2v, v2a"
    ):
        run(RectifiedFlow(), small_stdit(), steps=1, task=task)


def test_guidance_acts_within_its_interval_alone():
    """Four steps have the times 1, 0.75, 0.5 and 0.25; two of them lie in the interval [0.4, 0.8]."""
    model = LabelModel()
    noise = noise_batch(IDENTITIES[:1], SHAPE).double()
    labels = torch.tensor([0])
    result = sample(
        model,
        RectifiedFlow(),
        noise,
        labels_B=labels,
        steps=4,
        guidance_scale=3.0,
        guidance_interval=(0.4, 0.8),
    )
    plain, null = model.rows[0], model.rows[3]
    guided = null + 3 * (plain - null)
    torch.testing.assert_close(result, noise - (plain + guided) / 2)
    assert model.evaluations == 6


def test_groups_of_unlike_length_share_calls_and_equal_their_solo_runs():
    model = small_stdit()
    groups = []
    for number, settings in enumerate(
        [
            SamplingSettings(steps=5),
            SamplingSettings(steps=2, solver="heun"),
            SamplingSettings(steps=3, solver="ddim"),
        ]
    ):
        rows = slice(number, number + 2)
        noise = noise_batch(IDENTITIES[rows], SHAPE).double()
        groups.append(Group(settings, noise, Conditions(LABELS[rows]), identities=IDENTITIES[rows]))
    told = []
    together = denoise(model, RectifiedFlow(), groups, lambda done, total: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]
    for group, result in zip(groups, together, strict=True):
        torch.testing.assert_close(denoise(model, RectifiedFlow(), [group])[0], result, rtol=1e-9, atol=1e-9)


def test_a_solver_that_does_not_follow_the_process_is_reported():
    with pytest.raises(UserError, match="solver=heun does not follow diffusion.objective=ddpm"):
        run(DDPM(), small_stdit(), steps=3, solver="heun")
