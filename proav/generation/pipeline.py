"""SoundingVideoPipeline: from a checkpoint to clips with picture and sound, in plain PyTorch.

Notebooks, offline generation and the server all sample through it. It knows neither Ray nor the files of a
run: an ST-DiT checkpoint carries its MDSA, its labels and its latent statistics, and nothing else is needed.
A sample is a function of (checkpoint, seed, index, label, what is given, settings).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from proav.diffusion import make_process
from proav.diffusion.conditions import Conditions
from proav.diffusion.noise import noise_batch, uniforms_for
from proav.diffusion.tasks import TASKS
from proav.errors import UserError
from proav.generation.coder import LatentCoder, load_coder
from proav.generation.denoise import Group, denoise
from proav.generation.inputs import fit_given
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.models.stdit import STDiT
from proav.runs.checkpoint import load_checkpoint
from proav.text import find_label


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One clip to make. Requests of any kind can share a batch."""

    seed: int = 0
    index: int = 0
    label: str | None = None
    given: Clip | None = None
    """The clip whose sound (a2v) or picture (v2a) is given, at the model's rates and size."""
    settings: SamplingSettings = SamplingSettings()


class SoundingVideoPipeline:
    """Makes clips with picture and sound from one ST-DiT checkpoint."""

    def __init__(
        self,
        coder: LatentCoder,
        stdit: STDiT,
        *,
        labels: Sequence[str],
        name: str = "proav",
        checkpoint_hash: str = "",
        teacher_hash: str | None = None,
    ) -> None:
        """Usually called by `from_checkpoint`.

        coder: the autoencoder with its latent statistics.
        stdit: the generator, on the coder's device.
        labels: names of the label embedding's rows, without the null label.
        name, checkpoint_hash, teacher_hash: of the checkpoint; kept as attributes.
        """
        self.coder, self.stdit, self.labels = coder, stdit, tuple(labels)
        self.config, self.name = coder.config, name
        self.checkpoint_hash, self.teacher_hash = checkpoint_hash, teacher_hash
        self.process = make_process(self.config)

    @classmethod
    def from_checkpoint(
        cls, path: str, *, device: str | torch.device = "cpu", weights: str = "ema"
    ) -> "SoundingVideoPipeline":
        """Loads an ST-DiT checkpoint: its folder, or the `latest` file beside it.

        weights: "ema" (the moving average) or "model". Raises CheckpointError if the checkpoint is missing,
        damaged, or of an MDSA.
        """
        checkpoint = load_checkpoint(path, kind="stdit")
        coder = load_coder(checkpoint, device=device)
        stdit = STDiT(checkpoint.config, num_labels=len(checkpoint.labels))
        stdit.load_state_dict(checkpoint.weights(weights))
        return cls(
            coder,
            stdit.to(device).eval(),
            labels=checkpoint.labels,
            name=checkpoint.config.name,
            checkpoint_hash=checkpoint.hash,
            teacher_hash=checkpoint.teacher_hash,
        )

    @property
    def device(self) -> torch.device:
        return self.coder.device

    def __call__(
        self,
        num_samples: int = 1,
        *,
        label: str | None = None,
        task: str = "joint",
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        solver: str | None = None,
        schedule_shift: float | None = None,
        audio: np.ndarray | Tensor | None = None,
        sample_rate: int | None = None,
        video: np.ndarray | Tensor | None = None,
        clip: Clip | None = None,
        num_windows: int = 1,
        batch_size: int = 8,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Clip]:
        """Clips 0 .. num_samples - 1 of this seed.

        label: one of `labels`, or None for no label.
        task, steps, guidance_scale, guidance_interval, solver, schedule_shift: see SamplingSettings.
        audio, sample_rate: for a2v; samples in [-1, 1], mono or [channels, samples], and their rate in Hz.
        video: for v2a; uint8 [T, H, W, 3] at the model's frame rate.
        clip: for a2v or v2a, instead of audio or video.
        num_windows: 1. This version does not make longer clips.
        batch_size: clips that are sampled together.
        on_step: called with (done, total), in calls of the model.
        Raises UserError for a label, task, shape or range that the model does not have.
        """
        if num_samples < 1 or batch_size < 1:
            said = f"num_samples={num_samples}, batch_size={batch_size}"
            raise UserError(f"{said}: expected both to be at least 1")
        if num_windows != 1:
            raise UserError(
                f"num_windows={num_windows}: only task='continue' makes longer clips, and this version does "
                "not sample it; expected 1"
            )
        settings = SamplingSettings(
            task=task,
            steps=steps,
            solver=solver,
            schedule_shift=schedule_shift,
            guidance_scale=guidance_scale,
            guidance_interval=tuple(guidance_interval),
        )
        given = fit_given(self.config, task, audio=audio, sample_rate=sample_rate, video=video, clip=clip)
        clips, calls = [], settings.num_calls(self.process.objective)
        total = -(-num_samples // batch_size) * calls
        for first in range(0, num_samples, batch_size):
            indices = range(first, min(first + batch_size, num_samples))
            requests = [SampleRequest(seed, index, label, given, settings) for index in indices]
            before = first // batch_size * calls
            tell = on_step and (lambda done, _, before=before: on_step(before + done, total))
            clips += self.sample(requests, on_step=tell)
        return clips

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[SampleRequest], *, on_step: Callable[[int, int], None] | None = None
    ) -> list[Clip]:
        """One batch of clips. Each is what it would be alone, up to the rounding of the matrix kernels.

        on_step: called with (done, total), in calls of the model. Raises UserError.
        """
        requests = [
            dataclasses.replace(request, settings=request.settings.filled(self.process))
            for request in requests
        ]
        places: dict[SamplingSettings, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.settings.schedule, []).append(place)
        groups = [
            self._group(settings, [requests[place] for place in members])
            for settings, members in places.items()
        ]
        made = torch.cat(denoise(self.stdit, self.process, groups, on_step))
        order = [place for members in places.values() for place in members]
        stack = made if len(groups) == 1 else made[torch.tensor(order, device=made.device).argsort()]
        video, mel = self.coder.decode(self.coder.denormalize(stack))
        seeds = [phase_seed(request.seed, request.index) for request in requests]
        clips = self.coder.to_clips(video, mel, seeds=seeds)
        return [_with_given(clip, request) for clip, request in zip(clips, requests, strict=True)]

    def label_index(self, label: str | None) -> int:
        """Row of the label embedding; None is the null label. Raises UserError for an unknown label."""
        if label is None:
            return len(self.labels)
        place = find_label(label, self.labels)
        if place is None:
            known = ", ".join(self.labels) or "none: the model was trained without labels"
            raise UserError(f"label={label!r} is unknown to this checkpoint; expected one of: {known}")
        return place

    def _group(self, settings: SamplingSettings, requests: Sequence[SampleRequest]) -> Group:
        identities = [(request.seed, request.index) for request in requests]
        labels = torch.tensor([self.label_index(request.label) for request in requests], device=self.device)
        of_each = [request.settings for request in requests]
        guidance = [(one.guidance_scale, *one.guidance_interval) for one in of_each]
        return Group(
            settings,
            noise_batch(identities, self.coder.latents.stack_shape).to(self.device),
            Conditions(labels),
            guidance_B3=torch.tensor(guidance),
            given_BDPNN=self._encode_given(settings.task, requests),
            identities=identities,
        )

    def _encode_given(self, task: str, requests: Sequence[SampleRequest]) -> Tensor | None:
        """The lone planes of what is given; None for a task that is given nothing."""
        given = TASKS[task].given
        if given is None:
            return None
        clips = [request.given for request in requests]
        if None in clips:
            raise UserError(f"task={task!r} needs a given {given}: pass {given}=... or clip=...")
        video = torch.from_numpy(np.stack([clip.video for clip in clips]))
        mel = self.coder.mel_frames.encode(torch.from_numpy(np.stack([clip.audio for clip in clips])))
        return self.coder.normalize(self.coder.encode(video, mel, lone=True))


def _with_given(clip: Clip, request: SampleRequest) -> Clip:
    """A given stream goes into the result as it came, not through the autoencoder."""
    match TASKS[request.settings.task].given:
        case "audio":
            return dataclasses.replace(clip, audio=request.given.audio)
        case "video":
            return dataclasses.replace(clip, video=request.given.video)
        case _:
            return clip


def phase_seed(seed: int, index: int) -> int:
    """The seed of Griffin-Lim's first phases for sample `index`."""
    return int(uniforms_for(seed, index, 1, purpose="phase").item() * 2**53)
