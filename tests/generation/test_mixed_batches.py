"""One batch of everything that a model takes: tasks, steps, solvers, guidance, labels and vectors.

Each result is compared with that of its request alone: bit for bit with a model whose kernels work value by
value, and within a tolerance with ST-DiT, whose matrix products sum in another order at another batch size.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from proav.diffusion.masks import AUDIO, VIDEO
from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.solvers import SOLVERS
from proav.generation.coder import LatentCoder
from proav.generation.long_clips import window_of
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from tests.generation.test_pipeline import close
from tests.tiny import save_tiny_stdit, tiny_config

FRAMES, SAMPLES = 4, 12_800
TASKS = "diffusion.task_weights={joint: 1, a2v: 1, v2a: 1, i2av: 1, continue: 1, inpaint: 1}"
VECTORS = "stdit.vectors={caption: 6, words: [3, 4]}"
LATENT_TOLERANCE = 1e-5
"""In standard deviations of the latents, in fp32 on a CPU. docs/sampling.md names this number."""


@pytest.fixture(scope="module", params=["flow", "ddpm", "flow_map"])
def pipeline(request, tmp_path_factory):
    words = (f"diffusion.objective={request.param}", "diffusion.ddim_eta=0.5", "stdit.depth=3")
    config = tiny_config(TASKS, VECTORS, *words, "generate.steps=null")
    path = save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), config)
    return SoundingVideoPipeline.from_checkpoint(path)


def given_clip(seed: int, num_frames: int) -> Clip:
    draw = np.random.default_rng(seed)
    video = draw.integers(0, 255, (num_frames, 32, 32, 3), np.uint8)
    audio = draw.uniform(-0.5, 0.5, num_frames * SAMPLES // FRAMES).astype(np.float32)
    return Clip(video, audio, fps=5, sample_rate=16_000)


def vector(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mask(modality: int) -> np.ndarray:
    """All frames are given, except the last two of one modality."""
    known = np.ones((2, FRAMES), bool)
    known[modality, 2:] = False
    return known


def all_kinds(objective: str) -> list[SampleRequest]:
    """Requests of all tasks. The solvers of the process take turns; a flow map has its own guidance.

    Requests with a task that is given something have settings of their own. So what is given is encoded by
    itself in a batch too, and only the generator sees another batch.
    """
    caption, words = {"caption": vector(1, 6)}, {"words": vector(2, 2, 4)}
    rows = [  # task, steps, scale and interval of guidance, the rest of the request
        ("joint", 4, 2.0, (0.0, 1.0), {"label": "rain"}),
        ("joint", 4, 3.0, (0.3, 0.6), {"label": "rain;speech"}),
        ("joint", 4, 1.0, (0.0, 1.0), {"vectors": caption}),
        ("joint", 4, 2.0, (0.0, 0.4), {}),
        ("joint", 2, 0.0, (0.0, 1.0), {"label": "speech", "vectors": caption | words}),
        ("a2v", 3, 2.5, (0.2, 1.0), {"vectors": words}),
        ("v2a", 5, 1.0, (0.0, 1.0), {"label": "rain"}),
        ("i2av", 2, 1.5, (0.0, 0.5), {"label": "rain", "vectors": words}),
        ("continue", 3, 1.0, (0.0, 1.0), {}),
        ("continue", 1, 4.0, (0.0, 1.0), {"label": ["speech"]}),
        ("inpaint", 3, 2.0, (0.5, 1.0), {"vectors": caption, "known": mask(VIDEO)}),
        ("inpaint", 1, 1.0, (0.0, 1.0), {"label": "rain", "known": mask(AUDIO)}),
    ]
    solvers = [name for name, solver in SOLVERS.items() if objective in solver.objectives]
    requests = []
    for place, (task, steps, scale, interval, more) in enumerate(rows):
        settings = SamplingSettings(task, steps, solvers[(place // 4) % len(solvers)])
        if place % 3 == 2:
            settings = replace(settings, schedule_shift=2.0)
        if objective != "flow_map":
            settings = replace(settings, guidance_scale=scale, guidance_interval=interval)
        length = 6 if task == "continue" else FRAMES
        given = None if task == "joint" else given_clip(place, length)
        requests.append(SampleRequest(place % 5, place, given=given, settings=settings, **more))
    return requests


class Pointwise(torch.nn.Module):
    """A velocity that depends on state, times, labels, vectors and masked planes, value by value."""

    null_label = 2

    def forward(self, noisy, times_B2, conditions, next_times_B2=None):
        rows = torch.tensor([0.3, -0.4, 0.1])
        told_B = rows[conditions.labels_BK[:, 0]] + 0.1 * conditions.vectors["caption"][:, 0]
        told_B = told_B + 0.1 * conditions.vectors["words"][:, 0, 0]
        times = spread_to_planes(times_B2 if next_times_B2 is None else times_B2 + 0.5 * next_times_B2)
        velocity = told_B[:, None, None, None, None] * noisy + 0.2 * times * noisy * noisy
        masked = conditions.masked_BEPNN
        return velocity if masked is None else velocity + masked[:, :-1] * (0.5 + masked[:, -1:])


def latents(pipeline, requests) -> torch.Tensor:
    """The latents of the first windows. LatentCoder.decode must be patched to return what it is given."""
    return pipeline.sample_streams([window_of(pipeline.config, request) for request in requests])


@pytest.fixture
def undecoded(monkeypatch):
    monkeypatch.setattr(LatentCoder, "decode", lambda self, latents: latents)


def test_whatever_shares_a_batch_changes_no_bit_if_kernels_work_value_by_value(
    pipeline, undecoded, monkeypatch
):
    monkeypatch.setattr(pipeline, "stdit", Pointwise())
    requests = all_kinds(pipeline.process.objective)
    together, backwards = latents(pipeline, requests), latents(pipeline, requests[::-1]).flip(0)
    assert torch.equal(together, backwards) and together.isfinite().all()
    for made, request in zip(together, requests, strict=True):
        assert torch.equal(made, latents(pipeline, [request])[0]), request.settings


def test_whatever_shares_a_batch_changes_latents_by_rounding_alone(pipeline, undecoded):
    requests = all_kinds(pipeline.process.objective)
    together = latents(pipeline, requests)
    alone = torch.cat([latents(pipeline, [request]) for request in requests])
    torch.testing.assert_close(together, alone, rtol=0, atol=LATENT_TOLERANCE * alone.std().item())


def test_clips_of_all_kinds_and_lengths_equal_their_solo_runs(pipeline):
    requests = [
        request if request.known is not None or place % 2 else replace(request, num_windows=2)
        for place, request in enumerate(all_kinds(pipeline.process.objective))
    ]
    requests = [replace(one, given=one.given and given_clip(one.index, 6)) for one in requests]
    for made, request in zip(pipeline.sample(requests), requests, strict=True):
        assert close(made, pipeline.sample([request])[0]), request.settings
