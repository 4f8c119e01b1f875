"""Between clips and the generator's latents: MDSA, the mel transform and the latent statistics in one object.

Not here: the network (`proav/models/mdsa`), the mel transform (`proav/media/melframes.py`). Letters: B clips,
T frames, H W rows and columns, M mel bins, S mel columns in a frame, D channels, P=6 planes, N plane side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion.masks import fill_unknown
from proav.generation.sampling_settings import with_settings
from proav.geometry import ClipGeometry, LatentGeometry
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.models.layers import autocast
from proav.models.mdsa import MDSA, Exchange
from proav.models.mdsa.planes import stack_planes, unstack_planes
from proav.runs.checkpoint import Checkpoint


class LatentScale:
    """(latent - mean) / std and back, by plane and channel.

    mean, std: [6 planes][D channels], over the training set, as checkpoints and stats.json hold them.
    """

    def __init__(self, mean: Sequence[Sequence[float]], std: Sequence[Sequence[float]]) -> None:
        columns = (torch.tensor(values, dtype=torch.float32).T[..., None, None] for values in (mean, std))
        self.mean_DP11, self.std_DP11 = columns

    def to(self, device: torch.device) -> "LatentScale":
        """Moves the statistics to a device, and returns itself."""
        self.mean_DP11, self.std_DP11 = self.mean_DP11.to(device), self.std_DP11.to(device)
        return self

    def normalize(self, stack_BDPNN: Tensor) -> Tensor:
        return (stack_BDPNN - self.mean_DP11) / self.std_DP11

    def denormalize(self, stack_BDPNN: Tensor) -> Tensor:
        return stack_BDPNN * self.std_DP11 + self.mean_DP11


class LatentCoder:
    """Clips to normalized latent stacks and back."""

    def __init__(
        self,
        config: Config,
        mdsa: MDSA,
        *,
        latent_mean: Sequence[Sequence[float]] | None = None,
        latent_std: Sequence[Sequence[float]] | None = None,
        precision: str = "fp32",
    ) -> None:
        """config: of the checkpoint.

        mdsa: the autoencoder, on its device.
        latent_mean, latent_std: [6 planes][D channels], as a checkpoint holds them; None: no normalization.
        precision: in which MDSA's network encodes, "fp32" or "bf16" (autocast). It decodes in fp32.
        """
        self.config, self.mdsa, self.precision = config, mdsa, precision
        self.geometry, self.latents = ClipGeometry.from_config(config), LatentGeometry.from_config(config)
        self.mel_frames = MelFrames(config)
        self.device = next(mdsa.parameters()).device
        self.scale = None if latent_mean is None else LatentScale(latent_mean, latent_std).to(self.device)

    def normalize(self, stack_BDPNN: Tensor) -> Tensor:
        """The normalized stack, which the generator works on."""
        return stack_BDPNN if self.scale is None else self.scale.normalize(stack_BDPNN)

    def denormalize(self, stack_BDPNN: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return stack_BDPNN if self.scale is None else self.scale.denormalize(stack_BDPNN)

    def encode(self, video_BTHWC: Tensor, mel_BTMS: Tensor, *, lone: bool = False) -> Tensor:
        """uint8 pictures and mel images in [-1, 1] to MDSA's stacked planes [B, D, 6, N, N], not normalized.

        `lone`: each modality is encoded without the other. Streams that the generator is given are encoded
        so.
        """
        video_BCTHW = pixels_to_unit(video_BTHWC.to(self.device))
        encode = self.mdsa.encode_lone if lone else self.mdsa.encode
        with autocast(self.device.type, self.precision):
            planes = encode(video_BCTHW, mel_BTMS.to(self.device))
        return stack_planes(planes, self.latents.plane_size)

    def encode_masked(self, video_BTHWC: Tensor, mel_BTMS: Tensor, known_B2T: Tensor) -> Tensor:
        """The planes of a masked clip [B, D, 6, N, N]: each modality alone, its unknown frames filled.

        video_BTHWC, mel_BTMS: as in `encode`. Unknown frames are not read.
        known_B2T: bool; which frames are given, of the picture and of the sound.
        """
        return self.encode(*fill_unknown(video_BTHWC, mel_BTMS, known_B2T), lone=True)

    def decode(self, stack_BDPNN: Tensor, *, lone: bool = False) -> tuple[Tensor, Tensor]:
        """Stacked planes, not normalized, to uint8 pictures [B, T, H, W, 3] and mel images [B, T, M, S].

        Mel images are in [-1, 1]. `lone`: each modality is decoded without the other. MDSA is trained to do
        so with lone planes.
        """
        exchange = Exchange.off(len(stack_BDPNN)) if lone else Exchange()
        planes = unstack_planes(stack_BDPNN, self.geometry.num_frames, self.latents.channels)
        video_BCTHW, mel_BTMS = self.mdsa.decode(planes, exchange=exchange)
        return unit_to_pixels(video_BCTHW), mel_BTMS

    def to_clips(self, video_BTHWC: Tensor, mel_BTMS: Tensor, *, seeds: Sequence[int]) -> list[Clip]:
        """See the function `to_clips`."""
        return to_clips(self.mel_frames, video_BTHWC, mel_BTMS, seeds=seeds)


def to_clips(
    mel_frames: MelFrames, video_BTHWC: Tensor, mel_BTMS: Tensor, *, seeds: Sequence[int]
) -> list[Clip]:
    """Pictures and mel images as clips with sound. It needs no model.

    mel_frames: the mel transform of the model's configuration.
    video_BTHWC: uint8.
    mel_BTMS: in [-1, 1]. The sound is computed on its device.
    seeds: one a clip; it sets the first phases of the sound.
    """
    audio_BL = mel_frames.decode(mel_BTMS.float(), seeds).cpu().numpy()
    rates = {"fps": mel_frames.geometry.fps, "sample_rate": mel_frames.geometry.sample_rate}
    return [
        Clip(video=picture, audio=audio, **rates)
        for picture, audio in zip(video_BTHWC.cpu().numpy(), audio_BL, strict=True)
    ]


def load_coder(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
) -> LatentCoder:
    """The autoencoder of an MDSA or ST-DiT checkpoint: its moving average, with the latent statistics.

    checkpoint: if it has no statistics, the coder does not normalize.
    device: where MDSA runs.
    precision: as in `LatentCoder`.
    settings: as in `with_settings`; the others are those of the checkpoint. None: all are.
    """
    mdsa = MDSA(checkpoint.config)
    mdsa.load_state_dict(checkpoint.weights("mdsa" if checkpoint.kind == "stdit" else "ema"))
    statistics = {"latent_mean": checkpoint.latent_mean, "latent_std": checkpoint.latent_std}
    config = with_settings(checkpoint.config, settings or {})
    return LatentCoder(config, mdsa.to(device).eval(), **statistics, precision=precision)


def pixels_to_unit(video_BTHWC: Tensor) -> Tensor:
    """uint8 [B, T, H, W, C] to float [B, C, T, H, W] in [-1, 1]: x / 127.5 - 1."""
    return video_BTHWC.movedim(-1, 1).float() / 127.5 - 1


def unit_to_pixels(video_BCTHW: Tensor) -> Tensor:
    """Inverse of `pixels_to_unit`, rounded and clamped to uint8."""
    return (
        ((video_BCTHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()
    )
