"""MDSA, the Multi-scale Dual-stream Spatio-temporal Autoencoder (ProAV-DiT, Figure 2 (a)).

It codes picture and sound as six planes of latents, and decodes them.
encode: two stream encoders -> MT-SelfAttn on HT and WT, SelfAttn on HW -> GCM-Attn on HT and WT -> 1x1
convolution. Its sum with the linear planes is stored.
decode: 1x1 convolution -> Bi-Block CrossAttn -> two stream decoders, which add to the linear path.
Not here: losses (`proav/train/autoencoder_step.py`), waveforms (`proav/media`). Letters: B
clips, T frames, C channels, H W rows and columns, M mel bins, S mel columns in a frame, P planes, N plane
side, D latent channels.
"""

import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from proav.config import Config, MDSAConfig, Section
from proav.geometry import MODALITIES, PLANES, LatentGeometry, stream_geometries
from proav.models.layers import map_flops
from proav.models.mdsa.fusion import (
    BiBlockCrossAttention,
    GroupCrossAttention,
    MultiScaleTemporalAttention,
    SpatialAttention,
)
from proav.models.mdsa.linear_planes import FitSample, LinearPlanes
from proav.models.mdsa.streams import (
    FromLatents,
    StreamDecoder,
    StreamEncoder,
    ToLatents,
    tile_mel,
    untile_mel,
)

TIME_PLANES = ("WT", "HT")

Features = dict[str, dict[str, Tensor]]
"""Planes by modality and name: features["video"]["HW"]."""


@dataclass(frozen=True)
class Exchange:
    """Which clips of a batch get information from the other modality; None: all of them.

    A clip with an exchange off is coded as if that modality had come alone.
    """

    to_video_B: Tensor | None = None
    to_audio_B: Tensor | None = None

    @classmethod
    def draw(cls, batch: int, probability: float, generator: torch.Generator) -> "Exchange":
        """Modality dropout for a batch, from a CPU generator; see `from_uniform`."""
        return cls.from_uniform(torch.rand(batch, generator=generator, dtype=torch.float64), probability)

    @classmethod
    def from_uniform(cls, uniform_B: Tensor, probability: float) -> "Exchange":
        """Modality dropout: a clip loses the exchange toward audio, toward video, or both.

        Each of the three cases has `probability`, at most 1/3. uniform_B: one number in [0, 1) per clip,
        which decides.
        """
        assert 0 <= probability <= 1 / 3, f"three cases of probability {probability} exceed 1"
        audio_off_B = (uniform_B < probability) | (
            (uniform_B >= 2 * probability) & (uniform_B < 3 * probability)
        )
        video_off_B = (uniform_B >= probability) & (uniform_B < 3 * probability)
        return cls(to_video_B=~video_off_B, to_audio_B=~audio_off_B)

    @classmethod
    def off(cls, batch: int) -> "Exchange":
        """No exchange in either direction."""
        nothing_B = torch.zeros(batch, dtype=torch.bool)
        return cls(to_video_B=nothing_B, to_audio_B=nothing_B)


class MDSA(nn.Module):
    """The autoencoder. Untrained it is the linear code of `linear_planes.py`, bit for bit.

    All that the network adds is zero-initialized. Without the linear path
    (mdsa.linear_planes.enabled=false) the network is alone. Untrained it then equals two independent
    projected autoencoders. With the same torch seed, the weights of a part do not depend on which other parts
    are switched on. `activation_checkpointing`: keep only the inputs of transformer layers for the backward
    pass.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        mdsa = config.mdsa
        self.geometry = stream_geometries(config)
        self.plane_shapes = LatentGeometry.from_config(config).plane_shapes
        self.tiled_audio = mdsa.audio_input == "tiled"
        self.mel_bins, self.mel_steps = (
            config.mel.num_bins,
            config.clip.sample_rate // config.clip.fps // config.mel.hop,
        )
        self.activation_checkpointing = False
        self.encoder = nn.ModuleDict({name: StreamEncoder(self.geometry[name], mdsa) for name in MODALITIES})
        closed = mdsa.linear_planes.enabled
        self.to_latents = nn.ModuleDict(
            {name: ToLatents(mdsa.width, mdsa.channels(name), closed=closed) for name in MODALITIES}
        )
        self.from_latents = nn.ModuleDict(
            {name: FromLatents(mdsa.width, mdsa.channels(name)) for name in MODALITIES}
        )
        self.decoder = nn.ModuleDict(
            {name: StreamDecoder(self.geometry[name], mdsa, sound=name == "audio") for name in MODALITIES}
        )
        self.linear = nn.ModuleDict()
        if mdsa.linear_planes.enabled:
            for name in MODALITIES:
                self.linear[name] = LinearPlanes(
                    self.geometry[name],
                    mdsa.channels(name),
                    sound=name == "audio",
                    overlap=mdsa.linear_planes.overlap,
                    switched=mdsa.linear_planes.switched(name),
                )
        self._build_fusion(mdsa)

    def _build_fusion(self, config: MDSAConfig) -> None:
        """Makes the fusion modules by plane; those within a modality by modality, then by plane.

        A set that is switched off is empty.
        """
        width, scale, spatial, group, block = (
            config.width,
            config.multi_scale,
            config.spatial,
            config.group_cross,
            config.bi_block,
        )
        seed = int(torch.randint(2**62, (), device="cpu"))
        time_attention = partial(
            MultiScaleTemporalAttention, width, scale.num_heads, scale.scales, share_scales=scale.share_scales
        )
        space_attention = partial(SpatialAttention, width, spatial.num_heads)
        group_attention = partial(GroupCrossAttention, width, group.num_heads, group.num_groups)
        block_attention = partial(
            BiBlockCrossAttention, width, block.num_heads, block.block_size, global_tokens=block.global_tokens
        )
        block_planes = ("HW",) if block.apply_to == "HW" else PLANES

        def build(
            name: str, section: Section, planes: tuple[str, ...], module: Callable[[], nn.Module]
        ) -> nn.ModuleDict:
            with _own_random_stream(seed, name):
                return nn.ModuleDict(
                    {
                        plane: nn.ModuleList(module() for _ in range(section.repeats))
                        for plane in planes
                        if section.enabled
                    }
                )

        self.multi_scale = nn.ModuleDict(
            {name: build(f"multi_scale {name}", scale, TIME_PLANES, time_attention) for name in MODALITIES}
        )
        self.spatial = nn.ModuleDict(
            {name: build(f"spatial {name}", spatial, ("HW",), space_attention) for name in MODALITIES}
        )
        self.group_cross = build("group_cross", group, TIME_PLANES, group_attention)
        self.bi_block = build("bi_block", block, block_planes, block_attention)

    def encode(
        self, video_BCTHW: Tensor | None, mel_BTMS: Tensor | None, *, exchange: Exchange = Exchange()
    ) -> dict[str, Tensor]:
        """Latent planes {"v_HW": [B, D, rows, columns], ...}, float32.

        T is the first axis of WT and HT planes. Planes have about unit mean square with the linear path, and
        lie in [-1, 1] without it. If one modality is None, the other is encoded alone ("lone planes"):
        nothing of the missing one can leak.

        video_BCTHW: pictures in [-1, 1], or None.
        mel_BTMS: mel frames in [-1, 1], or None.
        exchange: which clips exchange information in GCM-Attn.
        """
        assert video_BCTHW is not None or mel_BTMS is not None, "encode needs pictures, mel frames, or both"
        images = self._images(video_BCTHW, mel_BTMS)
        features = {modality: self._encode_stream(modality, stream) for modality, stream in images.items()}
        if len(features) == 2:
            features = _cross(self.group_cross, features, exchange)
        latents = {}
        for modality, planes in features.items():
            linear = self.linear[modality].analyse(images[modality]) if self.linear else None
            latents |= {
                f"{modality[0]}_{name}": plane
                for name, plane in self.to_latents[modality](planes, linear).items()
            }
        return latents

    def decode(
        self, planes: dict[str, Tensor], *, exchange: Exchange = Exchange()
    ) -> tuple[Tensor | None, Tensor | None]:
        """(video_BCTHW, mel_BTMS) in [-1, 1], float32, from latent planes as `encode` gives them.

        A modality whose planes are not given is None, and the other is decoded alone. exchange: which clips
        exchange information in Bi-Block CrossAttn.
        """
        return tuple(
            None if images is None else images.clamp(-1, 1) for images in self._decode(planes, exchange)
        )

    def forward(
        self,
        video_BCTHW: Tensor,
        mel_BTMS: Tensor,
        *,
        exchange: Exchange = Exchange(),
        noise: Mapping[str, Tensor] | None = None,
        shown: Mapping[str, Tensor] | None = None,
        linear_alone: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encodes and decodes both modalities with the same exchange: (video_BCTHW, mel_BTMS) for losses.

        They are not clamped, so that the loss draws back what overshoots.

        video_BCTHW, mel_BTMS, exchange: as in `encode`.
        noise: added to the planes, in units of the root mean square of each plane of each clip.
        shown: [B, 1, rows, columns] of each plane; 1 for cells that reach the decoder, 0 for the others.
        linear_alone: the linear path without the network, at a fraction of the cost.
        """
        if linear_alone:
            return self._linear_alone(video_BCTHW, mel_BTMS)
        planes = self.encode(video_BCTHW, mel_BTMS, exchange=exchange)
        if noise is not None:
            planes = {name: plane + _root_mean_square(plane) * noise[name] for name, plane in planes.items()}
        if shown is not None:
            planes = {name: plane * shown[name] for name, plane in planes.items()}
        return self._decode(planes, exchange)

    def _decode(self, planes: dict[str, Tensor], exchange: Exchange) -> tuple[Tensor | None, Tensor | None]:
        given = [modality for modality in MODALITIES if f"{modality[0]}_HW" in planes]
        assert given and len(planes) == len(PLANES) * len(given), (
            f"expected all three planes of one or both modalities, got {tuple(planes)}"
        )
        latents = {modality: {name: planes[f"{modality[0]}_{name}"] for name in PLANES} for modality in given}
        features = {modality: self.from_latents[modality](latents[modality]) for modality in given}
        if len(features) == 2:
            features = _cross(self.bi_block, features, exchange)
        images = {}
        for modality in given:
            linear = self.linear[modality].synthesize(latents[modality]) if self.linear else None
            images[modality] = self.decoder[modality](
                features[modality], linear, recompute=self.activation_checkpointing
            )
        return images.get("video"), self._mel_frames(images["audio"]) if "audio" in images else None

    def _linear_alone(self, video_BCTHW: Tensor, mel_BTMS: Tensor) -> tuple[Tensor, Tensor]:
        images = self._images(video_BCTHW, mel_BTMS)
        made = {
            name: self.linear[name].synthesize(self.linear[name].analyse(stream))
            for name, stream in images.items()
        }
        return made["video"], self._mel_frames(made["audio"])

    def _mel_frames(self, image_BCTHW: Tensor) -> Tensor:
        """The mel grid of the sound's images, which the decoder made."""
        return (
            untile_mel(image_BCTHW, self.mel_bins, self.mel_steps) if self.tiled_audio else image_BCTHW[:, 0]
        )

    def encode_lone(self, video_BCTHW: Tensor, mel_BTMS: Tensor) -> dict[str, Tensor]:
        """All six planes, each modality encoded without the other. They can stand for a given stream."""
        return self.encode(video_BCTHW, None) | self.encode(None, mel_BTMS)

    def flops(self) -> dict[str, int]:
        """FLOPs for one clip: of `encode`, `encode_lone` and `decode`, by name."""
        lone = decode = 0
        for name in MODALITIES:
            lone += self.encoder[name].flops() + self._plane_flops(self.to_latents[name].convolution)
            lone += self._fusion_flops(self.multi_scale[name]) + self._fusion_flops(self.spatial[name])
            decode += self.decoder[name].flops() + self._plane_flops(self.from_latents[name].convolution)
            if self.linear:
                lone += self.linear[name].analysis_flops()
                decode += self.linear[name].synthesis_flops()
        return {
            "encode": lone + self._fusion_flops(self.group_cross),
            "encode_lone": lone,
            "decode": decode + self._fusion_flops(self.bi_block),
        }

    def _plane_flops(self, maps: nn.ModuleDict) -> int:
        """FLOPs of a map of each plane's cells."""
        return sum(map_flops(layer, math.prod(self.plane_shapes[name])) for name, layer in maps.items())

    def _fusion_flops(self, modules: nn.ModuleDict) -> int:
        return sum(module.flops(*self.plane_shapes[name]) for name, module in _by_plane(modules))

    def fit_linear_planes(self, batches: Collection[tuple[Tensor, Tensor]]) -> None:
        """Fills the linear path from batches of clips (video_BCTHW in [-1, 1], mel_BTMS).

        Does nothing without that path. If cells are switched, the batches are read twice. Meanwhile three
        pictures of each clip, its sound and some cells are kept in memory.
        """
        if not self.linear:
            return
        samples = {name: FitSample(sound=path.sound) for name, path in self.linear.items()}
        for video_BCTHW, mel_BTMS in batches:
            for modality, images_BCTHW in self._images(video_BCTHW, mel_BTMS).items():
                samples[modality].add(images_BCTHW)
        for modality, path in self.linear.items():
            path.fit(samples[modality].clips())
        switched = {name: path for name, path in self.linear.items() if path.switched is not None}
        left, num_clips = {name: [] for name in switched}, 0
        for video_BCTHW, mel_BTMS in batches if switched else ():
            images = self._images(video_BCTHW, mel_BTMS)
            for modality, path in switched.items():
                left[modality].append(path.left_over(images[modality], num_clips))
            num_clips += len(video_BCTHW)
        for modality, path in switched.items():
            path.fit_switched(torch.cat(left[modality]))

    def _images(self, video_BCTHW: Tensor | None, mel_BTMS: Tensor | None) -> dict[str, Tensor]:
        """What the encoders of the given modalities read."""
        images = {} if video_BCTHW is None else {"video": video_BCTHW}
        if mel_BTMS is None:
            return images
        mel_image = tile_mel(mel_BTMS, self.geometry["audio"]) if self.tiled_audio else mel_BTMS[:, None]
        return images | {"audio": mel_image}

    def _encode_stream(self, modality: str, images_BCTHW: Tensor) -> dict[str, Tensor]:
        expected, given = self.geometry[modality].input_shape, tuple(images_BCTHW.shape[1:])
        assert given == expected, (
            f"the {modality} encoder reads (C, T, rows, columns) = {expected}, got {given}"
        )
        planes = self.encoder[modality](images_BCTHW, recompute=self.activation_checkpointing)
        for name, module in [*_by_plane(self.multi_scale[modality]), *_by_plane(self.spatial[modality])]:
            planes = planes | {name: module(planes[name])}
        return planes


def _cross(modules: nn.ModuleDict, features: Features, exchange: Exchange) -> Features:
    """Both modalities' planes after a set of cross-modal modules. The dicts given are not changed."""
    video, audio = dict(features["video"]), dict(features["audio"])
    for name, module in _by_plane(modules):
        video[name], audio[name] = module(video[name], audio[name], exchange.to_video_B, exchange.to_audio_B)
    return {"video": video, "audio": audio}


def _root_mean_square(plane_BDRC: Tensor) -> Tensor:
    """[B, 1, 1, 1], without a gradient."""
    return plane_BDRC.detach().square().mean((1, 2, 3), keepdim=True).sqrt()


def _by_plane(modules: nn.ModuleDict) -> Iterator[tuple[str, nn.Module]]:
    """(plane, module) for all repeats, in order."""
    for name, repeats in modules.items():
        for module in repeats:
            yield name, module


@contextmanager
def _own_random_stream(seed: int, name: str) -> Iterator[None]:
    """Random numbers that depend on (seed, name) alone; the stream outside stays as it was.

    So a module that is switched off does not shift the weights of others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed ^ zlib.crc32(name.encode()))
        yield
