"""SoundingVideoPipeline: from a checkpoint to clips with picture and sound, in plain PyTorch.

Notebooks, offline generation and the server all sample through it. It knows neither Ray nor the files of a
run: an ST-DiT checkpoint carries its MDSA, its labels and its latent statistics, and nothing else is needed.
A sample is a function of (checkpoint, seed, index, labels, vectors, what is given, settings).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proav.diffusion import make_process
from proav.diffusion.conditions import Conditions
from proav.diffusion.noise import noise_batch
from proav.diffusion.tasks import TASKS, check_trained
from proav.errors import UserError
from proav.generation.coder import LatentCoder, load_coder
from proav.generation.denoise import Group, denoise
from proav.generation.finishing import finish_clips, given_streams
from proav.generation.inputs import fit_given, frames_around
from proav.generation.joining import joined
from proav.generation.long_clips import GrowingClip, check_given, check_length, of_length, wanted_frames
from proav.generation.requests import SampleRequest, known_frames
from proav.generation.sampling_settings import SamplingSettings
from proav.geometry import ClipGeometry
from proav.media.container import Clip, write_clips
from proav.models.layers import autocast
from proav.models.mdsa.planes import masked_condition
from proav.models.stdit import STDiT
from proav.runs.checkpoint import load_checkpoint
from proav.text import NO_LABEL, find_labels
from proav.vectors import check_vector_names, fitted


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
        precision: str = "fp32",
        teacher_hash: str | None = None,
    ) -> None:
        """Usually called by `from_checkpoint`.

        coder: the autoencoder with its latent statistics.
        stdit: the generator, on the coder's device.
        labels: names of the label embedding's rows, without the null label.
        name, checkpoint_hash, teacher_hash: of the checkpoint; kept as attributes.
        precision: in which the generator computes, "fp32" or "bf16" (autocast). The solver's state is fp32,
            and so is the autoencoder.
        """
        self.coder, self.stdit, self.labels = coder, stdit, tuple(labels)
        self.config, self.name, self.precision = coder.config, name, precision
        self.checkpoint_hash, self.teacher_hash = checkpoint_hash, teacher_hash
        self.process = make_process(self.config)

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        *,
        device: str | torch.device = "cpu",
        weights: str = "ema",
        precision: str = "fp32",
        settings: Mapping[str, Any] | None = None,
    ) -> "SoundingVideoPipeline":
        """Loads an ST-DiT checkpoint: its folder, or the `latest` file beside it.

        path: of the checkpoint, local or remote.
        device: where the models run.
        weights: "ema" (the moving average) or "model".
        precision: as in the constructor.
        settings: such as {"mel.griffin_lim_iterations": 64}, instead of the values of the checkpoint's run;
            see `with_settings`.
        Raises CheckpointError if the checkpoint is missing, damaged, or of an MDSA, and UserError for a
        setting that a trained model does not take.
        """
        checkpoint = load_checkpoint(path, kind="stdit")
        coder = load_coder(checkpoint, device=device, settings=settings)
        stdit = STDiT(checkpoint.config, num_labels=len(checkpoint.labels))
        stdit.load_state_dict(checkpoint.weights(weights))
        return cls(
            coder,
            stdit.to(device).eval(),
            labels=checkpoint.labels,
            name=checkpoint.config.name,
            checkpoint_hash=checkpoint.hash,
            precision=precision,
            teacher_hash=checkpoint.teacher_hash,
        )

    @property
    def device(self) -> torch.device:
        return self.coder.device

    def __call__(
        self,
        num_samples: int = 1,
        *,
        label: str | Sequence[str] | None = None,
        vectors: Mapping[str, np.ndarray | Sequence] | None = None,
        task: str = "joint",
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float = 1.0,
        audio_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        solver: str | None = None,
        schedule_shift: float | None = None,
        audio: np.ndarray | Tensor | None = None,
        sample_rate: int | None = None,
        video: np.ndarray | Tensor | None = None,
        image: np.ndarray | Tensor | None = None,
        clip: Clip | None = None,
        span: tuple[float, float] | None = None,
        stream: str = "both",
        num_windows: int = 1,
        seconds: float | None = None,
        batch_size: int = 8,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Clip]:
        """Clips 0 .. num_samples - 1 of a seed.

        num_samples: how many clips.
        label: one of `labels`, several in a list or with ; between them, or None for no label.
        vectors: {name: numbers}, such as the embedding of a text. `vector_shapes` lists the names and shapes:
            [W] for one vector, [L, W] for a sequence.
        task, steps, guidance_scale, audio_guidance_scale, guidance_interval, solver, schedule_shift: see
            SamplingSettings.
        seed: of the noise. The same seed and settings give the same clips.
        audio, sample_rate: for a2v; samples in [-1, 1], mono or [channels, samples], and their rate in Hz.
        video: for v2a; uint8 [T, H, W, 3] at the model's frame rate.
        image: for i2av; uint8 [H, W, 3], the first frame.
        clip: instead of audio, video or image; continue and inpaint need it. For continue, the result begins
            with the whole clip. inpaint uses only the beginning of the clip.
        span: for inpaint; begin and end in seconds. The frames that it touches are made, the others kept.
        stream: for inpaint; "video", "audio" or "both" are made in the span.
        num_windows: how many windows are made. A window that continues a clip adds only the frames that it is
            not given, by default half a window (`diffusion.continue_frames`). Each window after the
            first continues the one before, for any task.
        seconds: the length of the clip, instead of num_windows. A given stream must last as long.
        batch_size: clips that are sampled together.
        on_step: called with (done, total), in calls of the model.
        Raises UserError for a label, task, shape or range that the model does not have.
        """
        if num_samples < 1 or batch_size < 1:
            said = f"num_samples={num_samples}, batch_size={batch_size}"
            raise UserError(f"{said}: expected both to be at least 1")
        settings = SamplingSettings(
            task=task,
            steps=steps,
            solver=solver,
            schedule_shift=schedule_shift,
            guidance_scale=guidance_scale,
            audio_guidance_scale=audio_guidance_scale,
            guidance_interval=guidance_interval,
        )
        check_trained(task, self.config)
        streams = {"audio": audio, "sample_rate": sample_rate, "video": video, "image": image, "clip": clip}
        num_frames = wanted_frames(self.config, seconds, num_windows)
        wanted = SampleRequest(
            seed,
            label=label,
            given=fit_given(self.config, task, num_frames=num_frames, **streams),
            settings=settings,
            known=frames_around(ClipGeometry.from_config(self.config), task, span, stream),
            num_windows=num_windows,
            vectors=dict(vectors or {}),
        )
        if seconds is not None:
            wanted = of_length(self.config, wanted, num_frames)
        return self._in_batches(wanted, num_samples, batch_size, on_step)

    def _in_batches(
        self,
        wanted: SampleRequest,
        num_samples: int,
        batch_size: int,
        on_step: Callable[[int, int], None] | None,
    ) -> list[Clip]:
        """Clips 0 .. num_samples - 1 of a request.

        wanted: all of the request but its index.
        num_samples, batch_size, on_step: as in `__call__`.
        """
        clips, calls = [], wanted.num_calls(self.process.objective)
        total = -(-num_samples // batch_size) * calls
        for first in range(0, num_samples, batch_size):
            indices = range(first, min(first + batch_size, num_samples))
            requests = [dataclasses.replace(wanted, index=index) for index in indices]
            before = first // batch_size * calls
            tell = on_step and (lambda done, _, before=before: on_step(before + done, total))
            clips += self.sample(requests, on_step=tell)
        return clips

    def sample(
        self, requests: Sequence[SampleRequest], *, on_step: Callable[[int, int], None] | None = None
    ) -> list[Clip]:
        """One batch of clips. Each is what it would be alone, up to the rounding of the matrix kernels.

        on_step: called with (done, total), in calls of the model. Raises UserError.
        """
        clips: list[list[Clip]] = [[] for _ in requests]
        for place, piece in self.pieces(requests, on_step=on_step):
            clips[place].append(piece)
        return [joined(own) for own in clips]

    def pieces(
        self, requests: Sequence[SampleRequest], *, on_step: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, Clip]]:
        """Yields the clips of `sample` in pieces, as soon as each is made: (place of the request, piece).

        Joined, they equal the clips of `sample` bit for bit. Only a few windows of each clip are in memory.
        on_step: as in `sample`. Raises UserError.
        """
        return self._pieces(self._checked(requests), on_step)

    def stream(
        self, request: SampleRequest, *, on_step: Callable[[int, int], None] | None = None
    ) -> Iterator[Clip]:
        """The pieces of one request, see `pieces`. on_step: as in `sample`. Raises UserError."""
        return (piece for _, piece in self.pieces([request], on_step=on_step))

    def save(
        self, path: str, request: SampleRequest, *, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """Writes the clip of a request as mp4. Only a few windows are in memory.

        path: local or remote. on_step: as in `sample`. Raises UserError.
        """
        write_clips(path, self.stream(request, on_step=on_step))

    def _checked(self, requests: Sequence[SampleRequest]) -> list[SampleRequest]:
        """The requests with all settings filled in. Raises UserError."""
        requests = [
            dataclasses.replace(request, settings=request.settings.filled(self.process))
            for request in requests
        ]
        for request in requests:
            self._check_request(request)
        return requests

    @torch.inference_mode()
    def _pieces(
        self, requests: Sequence[SampleRequest], on_step: Callable[[int, int], None] | None
    ) -> Iterator[tuple[int, Clip]]:
        """(place of a request, the next piece of its clip), window by window."""
        growing = [GrowingClip(self.config, request) for request in requests]
        counts = self.num_calls(requests)
        for window, before in enumerate(accumulate(counts[:-1], initial=0)):
            places = [place for place, request in enumerate(requests) if request.num_windows > window]
            parts = [growing[place].window() for place in places]
            tell = on_step and (lambda done, _, before=before: on_step(before + done, sum(counts)))
            streams = self.sample_streams(parts, on_step=tell)
            made = finish_clips(self.config, self.coder.mel_frames, parts, *streams)
            for place, clip in zip(places, made, strict=True):
                for piece in growing[place].add(clip):
                    yield place, piece

    def num_calls(self, requests: Sequence[SampleRequest]) -> list[int]:
        """How often the model is called for each window of a batch: as often as its slowest request needs."""
        objective = self.process.objective
        return [
            max(one.settings.num_calls(objective) for one in requests if one.num_windows > window)
            for window in range(max(request.num_windows for request in requests))
        ]

    def _check_request(self, request: SampleRequest) -> None:
        name, task = request.settings.task, TASKS[request.settings.task]
        check_trained(name, self.config)
        check_vector_names(request.vectors, self.vector_shapes)
        check_length(self.config, name, request.num_windows)
        check_given(self.config, request)
        if request.given is None and (task.given or task.mask):
            what = (
                f"a given {task.given}: pass {task.given}=... or clip=..." if task.given else "a given clip"
            )
            raise UserError(f"task={name!r} needs {what}")
        if task.asks_span and request.known is None:
            raise UserError(f"task={name!r} needs to know which part to make: pass span=(begin, end)")

    @torch.inference_mode()
    def sample_streams(
        self, requests: Sequence[SampleRequest], *, on_step: Callable[[int, int], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One window of each request as the models make it, on their device; `finish_clips` comes next.

        Returns uint8 pictures [B, T, H, W, 3], and mel images [B, T, M, S] in [-1, 1]. All frames are the
        model's, even those that are given. on_step: as in `sample`.
        """
        places: dict[SamplingSettings, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.settings.schedule, []).append(place)
        groups = [
            self._group(settings, [requests[place] for place in members])
            for settings, members in places.items()
        ]
        with autocast(self.device.type, self.precision):
            made = torch.cat(denoise(self.stdit, self.process, groups, on_step))
        order = [place for members in places.values() for place in members]
        stack = made if len(groups) == 1 else made[torch.tensor(order, device=made.device).argsort()]
        return self.coder.decode(self.coder.denormalize(stack))

    @property
    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: (W,) or (longest, W)} of the vectors that the model takes."""
        return self.config.stdit.vector_shapes

    def label_indices(self, label: str | Sequence[str] | None) -> list[int]:
        """Rows of the label embedding; without a label, the null label's. Raises UserError if unknown."""
        places = find_labels(() if label is None else label, self.labels)
        if None in places:
            known = ", ".join(self.labels) or "none: the model was trained without labels"
            raise UserError(f"label={label!r} is unknown to this checkpoint; expected one of: {known}")
        return places or [len(self.labels)]

    def _group(self, settings: SamplingSettings, requests: Sequence[SampleRequest]) -> Group:
        identities = [(request.seed, request.index) for request in requests]
        of_each = [request.settings for request in requests]
        guidance = [(*one.guidance_scales, *one.guidance_interval) for one in of_each]
        return Group(
            settings,
            noise_batch(identities, self.coder.latents.stack_shape).to(self.device),
            self.conditions(settings.task, requests),
            guidance_B4=torch.tensor(guidance),
            given_BDPNN=self._encode_given(settings.task, requests),
            identities=identities,
        )

    def conditions(self, task: str, requests: Sequence[SampleRequest]) -> Conditions:
        """The conditions of requests for a task. Raises UserError for what the model does not take."""
        labels = [torch.tensor(self.label_indices(request.label)) for request in requests]
        vectors = {
            name: torch.from_numpy(
                np.stack([fitted(request.vectors.get(name), shape, name) for request in requests])
            )
            for name, shape in self.vector_shapes.items()
        }
        labels_BK = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=NO_LABEL)
        return Conditions(labels_BK, self._encode_masked(task, requests), vectors).to(self.device)

    def _encode_given(self, task: str, requests: Sequence[SampleRequest]) -> Tensor | None:
        """The planes of the given streams, each encoded without the other; None for a task without any."""
        given = TASKS[task].given
        if given is None:
            return None
        streams = given_streams(self.coder.mel_frames, requests)
        return self.coder.normalize(self.coder.encode(*streams, lone=True))

    def _encode_masked(self, task: str, requests: Sequence[SampleRequest]) -> Tensor | None:
        """The condition channels of a masked task [B, D+1, 6, N, N]; None for another task."""
        if TASKS[task].mask is None:
            return None
        known_B2T = torch.from_numpy(np.stack([known_frames(self.config, request) for request in requests]))
        planes_BDPNN = self.coder.encode_masked(*given_streams(self.coder.mel_frames, requests), known_B2T)
        return masked_condition(self.coder.normalize(planes_BDPNN), known_B2T)
