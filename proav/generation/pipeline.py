"""SoundingVideoPipeline: from a checkpoint to clips with picture and sound, in plain PyTorch.

Notebooks, offline generation and the server all sample through it. It knows neither Ray nor files of a run: a ST-DiT checkpoint carries
its MDSA, its labels and its latent statistics, so that it alone makes clips. A sample is a function of (checkpoint, seed, index, settings).
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion import make_process
from proav.diffusion.noise import noise_batch, uniforms_for
from proav.diffusion.tasks import TASKS, sampling_task
from proav.errors import UserError
from proav.generation.sampler import sample
from proav.geometry import ClipGeometry, LatentGeometry
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.media.pictures import Canvas
from proav.media.torchaudio import resample
from proav.models.mdsa import MDSA, CrossFlow
from proav.models.mdsa.planes import stack_planes, unstack_planes
from proav.models.stdit import STDiT
from proav.runs.checkpoint import Checkpoint, load_checkpoint
from proav.text import find_label


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One clip to make. Requests of one task and step count share a batch, whatever their seeds, labels and guidance."""

    seed: int = 0
    index: int = 0
    label: str | None = None
    guidance_scale: float = 1.0
    given: Clip | None = None
    """For a2v the clip whose sound is given, for v2a the clip whose picture is given, at the model's own rates and size."""


class LatentCoder:
    """Clips to normalized latent stacks and back: MDSA, the mel transform and the latent statistics as one thing."""

    def __init__(
        self, config: Config, mdsa: MDSA, *, latent_mean: Sequence[Sequence[float]] | None = None, latent_std: Sequence[Sequence[float]] | None = None
    ) -> None:
        """latent_mean, latent_std: [6 planes][D channels], as a checkpoint holds them; None leaves latents as they are."""
        self.config, self.mdsa = config, mdsa
        self.geometry, self.latents = ClipGeometry.from_config(config), LatentGeometry.from_config(config)
        self.mel_frames = MelFrames(config)
        channels, planes = self.latents.stack_shape[:2]
        mean_PD = torch.zeros(planes, channels) if latent_mean is None else torch.tensor(latent_mean)
        std_PD = torch.ones(planes, channels) if latent_std is None else torch.tensor(latent_std)
        device = next(mdsa.parameters()).device
        self.mean_BDP11, self.std_BDP11 = (values_PD.T[None, :, :, None, None].to(device) for values_PD in (mean_PD, std_PD))

    @property
    def device(self) -> torch.device:
        return self.mean_BDP11.device

    def normalize(self, stack_BDPNN: Tensor) -> Tensor:
        return (stack_BDPNN - self.mean_BDP11) / self.std_BDP11

    def denormalize(self, stack_BDPNN: Tensor) -> Tensor:
        return stack_BDPNN * self.std_BDP11 + self.mean_BDP11

    def encode(self, video_BTHWC: Tensor, mel_BTMS: Tensor, *, lone: bool = False) -> Tensor:
        """uint8 pictures and mel images in [-1, 1] to MDSA's planes, stacked, not normalized: [B, D, 6, N, N].

        `lone` encodes each modality without the other; a given stream always enters the generator so.
        """
        video_BCTHW = pixels_to_unit(video_BTHWC.to(self.device))
        encode = self.mdsa.encode_lone if lone else self.mdsa.encode
        return stack_planes(encode(video_BCTHW, mel_BTMS.to(self.device)), self.latents.plane_size)

    def decode(self, stack_BDPNN: Tensor, *, lone: bool = False) -> tuple[Tensor, Tensor]:
        """Planes, stacked, not normalized, to uint8 pictures [B, T, H, W, 3] and mel images [B, T, M, S] in [-1, 1].

        `lone` decodes each modality without the other, as MDSA is trained to do with planes that were encoded so.
        """
        flow = CrossFlow.off(len(stack_BDPNN)) if lone else CrossFlow()
        video_BCTHW, mel_BTMS = self.mdsa.decode(unstack_planes(stack_BDPNN, self.geometry.num_frames, self.latents.channels), flow=flow)
        return unit_to_pixels(video_BCTHW), mel_BTMS

    def to_clips(self, video_BTHWC: Tensor, mel_BTMS: Tensor, *, seeds: Sequence[int]) -> list[Clip]:
        """Pictures and mel images as clips with sound; the phase of each sound follows from its seed."""
        audio_BL = self.mel_frames.decode(mel_BTMS.float(), seeds).cpu().numpy()
        pictures = video_BTHWC.cpu().numpy()
        return [
            Clip(video=picture, audio=audio, fps=self.geometry.fps, sample_rate=self.geometry.sample_rate)
            for picture, audio in zip(pictures, audio_BL, strict=True)
        ]


class SoundingVideoPipeline:
    """Makes clips with picture and sound from one ST-DiT checkpoint."""

    def __init__(self, coder: LatentCoder, stdit: STDiT, *, labels: Sequence[str], name: str = "proav", checkpoint_hash: str = "") -> None:
        self.coder, self.stdit, self.labels = coder, stdit, tuple(labels)
        self.config, self.name, self.checkpoint_hash = coder.config, name, checkpoint_hash
        self.process = make_process(self.config)

    @classmethod
    def from_checkpoint(cls, path: str, *, device: str | torch.device = "cpu", weights: str = "ema") -> "SoundingVideoPipeline":
        """Loads a ST-DiT checkpoint: its folder, or the `latest` file beside it. `weights`: "ema" (the moving average) or "model".

        Raises CheckpointError where it is missing, damaged, or an MDSA checkpoint.
        """
        checkpoint = load_checkpoint(path, kind="stdit")
        coder = load_coder(checkpoint, device=device)
        stdit = STDiT(checkpoint.config, num_labels=len(checkpoint.labels))
        stdit.load_state_dict(checkpoint.weights(weights))
        return cls(coder, stdit.to(device).eval(), labels=checkpoint.labels, name=checkpoint.config.name, checkpoint_hash=checkpoint.hash)

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
        steps: int = 30,
        guidance_scale: float = 1.0,
        audio: np.ndarray | Tensor | None = None,
        sample_rate: int | None = None,
        video: np.ndarray | Tensor | None = None,
        clip: Clip | None = None,
        num_windows: int = 1,
        batch_size: int = 8,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Clip]:
        """Clips 0 .. num_samples - 1 of this seed.

        label: one of `labels`, or None for no label. steps: denoising steps, 1 to 1000. guidance_scale: 1 is none.
        a2v takes `audio` (samples in [-1, 1], mono or [channels, samples]) with its `sample_rate` in Hz, v2a takes `video`
        (uint8 [T, H, W, 3] at the model's frame rate), either one takes `clip` instead. on_step(done, total) is told of progress.
        Raises UserError for a label, task, shape or range that the model does not have.
        """
        if num_samples < 1 or batch_size < 1:
            raise UserError(f"num_samples={num_samples}, batch_size={batch_size}: expected both to be at least 1")
        if num_windows != 1:
            raise UserError(f"num_windows={num_windows}: only task='continue' makes longer clips, and this version does not sample it; expected 1")
        given = self._given_clip(task, audio, sample_rate, video, clip)
        clips, total = [], -(-num_samples // batch_size) * steps
        for first in range(0, num_samples, batch_size):
            requests = [SampleRequest(seed, index, label, guidance_scale, given) for index in range(first, min(first + batch_size, num_samples))]
            before = first // batch_size * steps
            clips += self.sample(requests, task=task, steps=steps, on_step=on_step and (lambda done, _, before=before: on_step(before + done, total)))
        return clips

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[SampleRequest], *, task: str = "joint", steps: int = 30, on_step: Callable[[int, int], None] | None = None
    ) -> list[Clip]:
        """One batch of clips, each equal to what it would be alone (to the rounding of the matrix kernels)."""
        self._check_settings(task, steps, requests)
        identities = [(request.seed, request.index) for request in requests]
        noise = noise_batch(identities, self.coder.latents.stack_shape).to(self.device)
        labels = torch.tensor([self.label_index(request.label) for request in requests], device=self.device)
        scales = torch.tensor([request.guidance_scale for request in requests], device=self.device)
        given = self._encode_given([request.given for request in requests]) if TASKS[task].given else None
        stack = sample(
            self.stdit, self.process, noise, labels_B=labels, guidance_scale_B=scales, steps=steps, task=task, given_BDPNN=given,
            identities=identities, on_step=on_step,
        )  # fmt: skip
        video, mel = self.coder.decode(self.coder.denormalize(stack))
        clips = self.coder.to_clips(video, mel, seeds=[phase_seed(*identity) for identity in identities])
        if TASKS[task].given == "audio":  # the given stream goes into the result as it came, not through the autoencoder
            return [dataclasses.replace(clip, audio=request.given.audio) for clip, request in zip(clips, requests, strict=True)]
        if TASKS[task].given == "video":
            return [dataclasses.replace(clip, video=request.given.video) for clip, request in zip(clips, requests, strict=True)]
        return clips

    def label_index(self, label: str | None) -> int:
        """Row of the label embedding; None is the null label. Raises UserError for an unknown label."""
        if label is None:
            return len(self.labels)
        place = find_label(label, self.labels)
        if place is None:
            known = ", ".join(self.labels) or "none: the model was trained without labels"
            raise UserError(f"label={label!r} is unknown to this checkpoint; expected one of: {known}")
        return place

    def _check_settings(self, task: str, steps: int, requests: Sequence[SampleRequest]) -> None:
        sampling_task(task)
        if not 1 <= steps <= 1000:
            raise UserError(f"steps={steps}: expected 1 to 1000")
        for request in requests:
            if not 0 <= request.guidance_scale <= 30:
                raise UserError(f"guidance_scale={request.guidance_scale}: expected 0 to 30")
            if TASKS[task].given and request.given is None:
                raise UserError(f"task={task!r} needs a given {TASKS[task].given}: pass {TASKS[task].given}=... or clip=...")

    def _given_clip(self, task: str, audio, sample_rate: int | None, video, clip: Clip | None) -> Clip | None:
        given = TASKS[task].given if task in TASKS else None
        named = [name for name, value in (("audio", audio), ("video", video), ("clip", clip)) if value is not None]
        if given is None:
            if named:
                raise UserError(f"{named[0]}=... was given, but task={task!r} takes none; write task='a2v' or task='v2a'")
            return None
        wanted, frame_rate = {"audio": audio, "video": video}[given], None
        if len(named) != 1 or named[0] not in (given, "clip"):
            raise UserError(f"task={task!r} takes {given}=... or clip=..., and nothing else; given: {', '.join(named) or 'nothing'}")
        if clip is not None:
            wanted, sample_rate, frame_rate = (clip.audio, clip.sample_rate, None) if given == "audio" else (clip.video, None, clip.fps)
        geometry = self.coder.geometry
        silence = np.zeros(geometry.num_samples, np.float32)
        black = np.zeros((geometry.num_frames, geometry.height, geometry.width, 3), np.uint8)
        if given == "audio":
            return Clip(video=black, audio=self._fit_audio(wanted, sample_rate), fps=geometry.fps, sample_rate=geometry.sample_rate)
        return Clip(video=self._fit_video(wanted, frame_rate), audio=silence, fps=geometry.fps, sample_rate=geometry.sample_rate)

    def _fit_audio(self, audio, sample_rate: int | None) -> np.ndarray:
        if sample_rate is None:
            raise UserError("audio=... needs its sample_rate=... in Hz, such as sample_rate=16000")
        if not (isinstance(sample_rate, numbers.Integral) and sample_rate > 0):
            raise UserError(f"sample_rate={sample_rate!r}: expected a whole number of Hz, such as sample_rate=16000")
        waveform = torch.as_tensor(audio if isinstance(audio, Tensor) else np.array(audio, np.float32), dtype=torch.float32).detach().cpu()
        if waveform.ndim not in (1, 2) or not torch.isfinite(waveform).all():
            raise UserError(f"audio of shape {list(waveform.shape)}: expected finite samples [samples] or [channels, samples]")
        waveform = waveform.mean(0) if waveform.ndim == 2 else waveform
        peak = float(waveform.abs().max()) if waveform.numel() else 0.0
        if peak > 1:
            raise UserError(f"audio reaches {peak:g}: expected samples in [-1, 1]; divide it by its largest magnitude")
        waveform = resample(waveform[None], int(sample_rate), self.coder.geometry.sample_rate)[0].clamp(-1, 1)  # it overshoots loud edges
        wanted = self.coder.geometry.num_samples
        if waveform.numel() < wanted:
            seconds = waveform.numel() / self.coder.geometry.sample_rate
            raise UserError(f"audio of {seconds:.2f} s: expected at least the {self.coder.geometry.seconds:g} s of a clip (its beginning is used)")
        return waveform[:wanted].numpy()

    def _fit_video(self, video, frame_rate: int | None) -> np.ndarray:
        """frame_rate: of a clip, whose frames are then chosen by time; None: the model's."""
        pictures, geometry = np.asarray(video.detach().cpu() if isinstance(video, Tensor) else video), self.coder.geometry
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise UserError(f"video of shape {list(pictures.shape)} and type {pictures.dtype}: expected uint8 [T, H, W, 3]")
        if frame_rate is not None:  # frame k is the picture shown at k / fps
            pictures = pictures[np.arange(len(pictures) * geometry.fps // frame_rate) * frame_rate // geometry.fps]
        if len(pictures) < geometry.num_frames:
            raise UserError(f"video of {len(pictures)} frames: expected at least {geometry.num_frames} at {geometry.fps} fps (its beginning is used)")
        pictures = pictures[: geometry.num_frames]
        if pictures.shape[1:3] == (geometry.height, geometry.width):
            return pictures
        canvas = Canvas(height=geometry.height, width=geometry.width, fit=self.config.data.fit)  # as the training pictures were drawn
        return np.stack([canvas.draw(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")) for picture in pictures])

    def _encode_given(self, clips: Sequence[Clip]) -> Tensor:
        video = torch.from_numpy(np.stack([clip.video for clip in clips]))
        mel = self.coder.mel_frames.encode(torch.from_numpy(np.stack([clip.audio for clip in clips])))
        return self.coder.normalize(self.coder.encode(video, mel, lone=True))


def load_coder(checkpoint: Checkpoint, *, device: str | torch.device = "cpu") -> LatentCoder:
    """The autoencoder of an MDSA or a ST-DiT checkpoint (its moving average), with the latent statistics if it carries them."""
    mdsa = MDSA(checkpoint.config)
    mdsa.load_state_dict(checkpoint.weights("mdsa" if checkpoint.kind == "stdit" else "ema"))
    return LatentCoder(checkpoint.config, mdsa.to(device).eval(), latent_mean=checkpoint.latent_mean, latent_std=checkpoint.latent_std)


def phase_seed(seed: int, index: int) -> int:
    """The seed of Griffin-Lim's first phases of sample `index`."""
    return int(uniforms_for(seed, index, 1, purpose="phase").item() * 2**53)


def pixels_to_unit(video_BTHWC: Tensor) -> Tensor:
    """uint8 [B, T, H, W, C] to float [B, C, T, H, W] in [-1, 1]: x / 127.5 - 1."""
    return video_BTHWC.movedim(-1, 1).float() / 127.5 - 1


def unit_to_pixels(video_BCTHW: Tensor) -> Tensor:
    """Inverse of `pixels_to_unit`, rounded and clamped to uint8."""
    return ((video_BCTHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()
