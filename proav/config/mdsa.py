"""Settings of MDSA, the autoencoder: its size, each of its attention modules, its objective."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proav.config.changes import Changes
from proav.config.section import Count, PositiveFloat, PositiveInt, Probability, Section, Weight
from proav.config.training import MDSATrainConfig


class MultiScaleConfig(Section):
    """MT-SelfAttn: temporal self-attention at several scales, on the planes that have time (WT, HT)."""

    changes = ("mdsa",)

    enabled: bool = True
    """Off: the planes pass unchanged."""
    scales: tuple[PositiveInt, ...] = (1, 2, 4)
    """Temporal pooling factors; each divides clip.num_frames."""
    num_heads: PositiveInt = 8
    """Attention heads per scale."""
    share_scales: bool = False
    """One set of projections for all scales."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class SpatialConfig(Section):
    """SelfAttn: spatial self-attention on the HW plane."""

    changes = ("mdsa",)

    enabled: bool = True
    """Off: the plane passes unchanged."""
    num_heads: PositiveInt = 8
    """Attention heads."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class GroupCrossConfig(Section):
    """GCM-Attn: cross-modal attention within temporal groups, in both directions, on WT and HT."""

    changes = ("mdsa",)

    enabled: bool = True
    """Off: the modalities do not meet in the encoder."""
    num_groups: PositiveInt = 4
    """Contiguous temporal groups, G; divides clip.num_frames."""
    num_heads: PositiveInt = 8
    """Attention heads."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class BiBlockConfig(Section):
    """Bi-Block CrossAttn: cross-modal attention between equal blocks of planes, on the decoder's side."""

    changes = ("mdsa",)

    enabled: bool = True
    """Off: the modalities do not meet in the decoder."""
    block_size: PositiveInt = 4
    """Side of a block, in plane cells; divides the sides of the planes named by apply_to."""
    global_tokens: bool = True
    """Each block also sees the mean of every other block of the other modality."""
    apply_to: Literal["HW", "all"] = "HW"
    """HW: that plane only. all: all three planes."""
    num_heads: PositiveInt = 8
    """Attention heads."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class BasesConfig(Section):
    """How many bases a stream's first plane has; each cell of the plane chooses one. 1: no choice."""

    changes = ("mdsa",)

    video: PositiveInt = 1
    """Bases of the picture's HW plane."""
    audio: PositiveInt = 1
    """Bases of the sound's HT plane; the blocks of this plane are small, so many bases cost little."""


class LinearPlanesConfig(Section):
    """The linear part of the projection onto the planes.

    It is fitted before training, then trained further.
    """

    changes = ("mdsa",)

    enabled: bool = True
    """Off: only the network makes planes (bounded by tanh) and pictures (bounded by a sigmoid)."""
    overlap: bool = True
    """Neighbouring blocks overlap by half (lapped images) on even sides of at least 4; off: plain blocks."""
    bases: BasesConfig = BasesConfig()
    """Switched cells: the number of bases among which each chooses."""
    switched_channels: Annotated[int, Field(ge=2)] = 24
    """Channels for switched cells, the last of a first plane: the basis's index, then its coefficients."""
    fit_clips: PositiveInt = 192
    """First clips of training, used for the fit; three pictures and the sound of each are kept."""
    alone_clips: Annotated[Count, Changes("training")] = 0
    """Clips at the beginning of training that train the linear planes only, at far lower cost."""

    def switched(self, modality: Literal["video", "audio"]) -> tuple[int, int]:
        """(bases, channels) of one modality's switched cells; (1, 0) without them."""
        bases = getattr(self.bases, modality)
        return (bases, self.switched_channels) if bases > 1 else (1, 0)


class RefinerConfig(Section):
    """Convolutions at the picture's resolution, after each decoder; the last layer is zero-initialized."""

    changes = ("mdsa",)

    enabled: bool = True
    """Off: the decoder's patches are the output."""
    width: PositiveInt = 32
    """Channels at the finest resolution; each level doubles them."""
    levels: Annotated[int, Field(ge=1, le=5)] = 3
    """Number of resolutions, each half the one before."""
    patch: PositiveInt = 2
    """Side of the pixel squares that the first layer gathers into one position."""


class PlaneChannelsConfig(Section):
    """Channels of single planes, in the order HW, WT, HT."""

    changes = ("mdsa",)

    video: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Channels of the picture's planes; empty: latent_channels each."""
    audio: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Channels of the sound's planes; empty: latent_channels each."""


class MDSALossConfig(Section):
    """The autoencoder's objective."""

    changes = ("training",)

    pixel: Weight = 4.0
    """L1 on all frames."""
    pixel_squared: Weight = 0.0
    """Squared error on all frames: what PSNR measures."""
    perceptual: Weight = 4.0
    """LPIPS on one random frame per clip; only if perceptual_weights names a file."""
    perceptual_weights: str | None = None
    """File with LPIPS weights (safetensors); empty: multi_scale_gradient replaces it, and results say so."""
    multi_scale_gradient: Weight = 1.0
    """L1 on image gradients at three resolutions, used if there are no LPIPS weights."""
    audio: Weight = 1.0
    """Weight of the whole audio part relative to the video part."""
    mel: Weight = 4.0
    """L1 on the native mel grid (the block mean of the image)."""
    mel_squared: Weight = 0.0
    """Squared error on the native mel grid."""
    mel_difference: Weight = 1.0
    """L1 on differences between neighbouring mel columns and bands."""
    adversarial: Weight = 1.0
    """Hinge loss against the discriminators."""
    feature_matching: Weight = 4.0
    """L1 between the discriminators' feature maps of real and decoded clips."""
    adversarial_start_clips: Count = 800_000
    """Clips seen before the discriminators enter; more than train.num_clips: never."""
    discriminator_width: Annotated[PositiveInt, Changes("discriminators")] = 64
    """Channels of a discriminator's first layer."""
    discriminator_layers: Annotated[PositiveInt, Changes("discriminators")] = 3
    """Strided layers of a discriminator."""
    discriminator_learning_rate: PositiveFloat = 1e-4
    """AdamW's step size for the discriminators."""


class MDSAConfig(Section):
    """The Multi-scale Dual-stream Spatio-temporal Autoencoder."""

    changes = ("mdsa",)

    plane_size: PositiveInt = 16
    """Rows and columns N of the HW plane and of the stacked latent, at least clip.num_frames; the patch side
    is P = H / N.
    """
    latent_channels: PositiveInt = 16
    """Channels D of a plane, unless plane_channels says otherwise."""
    plane_channels: PlaneChannelsConfig = PlaneChannelsConfig()
    """Channels of single planes."""
    linear_planes: LinearPlanesConfig = LinearPlanesConfig()
    """The linear path."""
    refiner: RefinerConfig = RefinerConfig()
    """Convolutions after the decoders."""
    width: PositiveInt = 384
    """Feature width C."""
    encoder_depth: PositiveInt = 8
    """Divided space-time blocks in each encoder."""
    decoder_depth: PositiveInt = 8
    """Divided space-time blocks in each decoder."""
    num_heads: PositiveInt = 8
    """Attention heads of the encoders and decoders."""
    head_width: PositiveInt = 64
    """Width of one of those heads; a multiple of 4, for axial rotary positions."""
    mlp_ratio: PositiveInt = 4
    """Hidden width of a block's gated MLP, in multiples of width."""
    collapse_depth: PositiveInt = 4
    """Layers of the transformer that collapses an axis into a plane."""
    collapse_heads: PositiveInt = 4
    """Attention heads of that transformer, each of width / 8 channels."""
    collapse_mlp_width: PositiveInt = 512
    """Hidden width of that transformer's MLP."""
    audio_input: Literal["native", "tiled"] = "native"
    """native: patches of the T x M x S mel grid. tiled: patches of the T x H x W image, which cover the same
    sound and cost more.
    """
    audio_channels: Literal[1, 3] = 1
    """Channels of the tiled mel image: 1 as in Figure 1, or 3 equal ones."""
    multi_scale: MultiScaleConfig = MultiScaleConfig()
    """MT-SelfAttn."""
    spatial: SpatialConfig = SpatialConfig()
    """SelfAttn on HW."""
    group_cross: GroupCrossConfig = GroupCrossConfig()
    """GCM-Attn."""
    bi_block: BiBlockConfig = BiBlockConfig()
    """Bi-Block CrossAttn."""
    modality_dropout: Annotated[Probability, Changes("training")] = 0.1
    """Training probability of each of three cases: audio gets nothing from video, video gets nothing from
    audio, or neither gets anything from the other.
    """
    latent_noise: Annotated[Weight, Changes("training")] = 0.0
    """Standard deviation of noise on the planes in training, in units of each plane's root mean square."""
    latent_mask: Annotated[Probability, Changes("training")] = 0.0
    """Share of training clips that have a quarter, half or three quarters of their plane cells hidden."""
    init_from: Annotated[str | None, Changes("training")] = None
    """A trained MDSA, or an ST-DiT that carries one, whose moving-average weights a new one starts from; its
    clips may have another size. Nothing is fitted then, and no clips train the linear planes alone. Empty:
    random weights and fitted linear planes.
    """
    loss: MDSALossConfig = MDSALossConfig()
    """The objective."""
    train: MDSATrainConfig = MDSATrainConfig()
    """How it is trained."""

    @property
    def alone_clips(self) -> int:
        """Clips at the beginning of training that train the linear planes only."""
        fitted = self.linear_planes.enabled and not self.init_from
        return self.linear_planes.alone_clips if fitted else 0

    def channels(self, modality: Literal["video", "audio"]) -> dict[str, int]:
        """{plane: channels} of one modality."""
        given = getattr(self.plane_channels, modality) or (self.latent_channels,) * 3
        return dict(zip(("HW", "WT", "HT"), given, strict=True))

    @model_validator(mode="after")
    def _check(self) -> "MDSAConfig":
        if 3 * self.modality_dropout > 1:
            raise ValueError(
                f"mdsa.modality_dropout={self.modality_dropout} is the probability of each of three cases; "
                "expected at most 1/3"
            )
        if self.head_width % 4:
            raise ValueError(
                f"mdsa.head_width={self.head_width} must be a multiple of 4 (axial rotary positions)"
            )
        if self.width % 8:
            raise ValueError(
                f"mdsa.width={self.width} must be a multiple of 8 (collapse heads are width / 8 wide)"
            )
        for name, part in self:
            heads = getattr(part, "num_heads", 1)
            if self.width % heads:
                raise ValueError(f"mdsa.{name}.num_heads={heads} does not divide mdsa.width={self.width}")
        linear = self.linear_planes
        for modality, plane in (("video", "HW"), ("audio", "HT")):
            bases, switched = linear.switched(modality)
            if bases > 1 and not linear.enabled:
                raise ValueError(
                    f"mdsa.linear_planes.bases.{modality}={bases} needs "
                    "mdsa.linear_planes.enabled=true; or write 1"
                )
            channels = self.channels(modality)[plane]
            if switched >= channels:
                raise ValueError(
                    f"mdsa.linear_planes.switched_channels={switched} leaves none of the {channels} channels "
                    f"of {modality}'s {plane}; write more in mdsa.plane_channels.{modality}, or switch fewer"
                )
        if self.multi_scale.enabled and not self.multi_scale.scales:
            raise ValueError(
                "mdsa.multi_scale.scales=[] names no scale; write [1,2,4], or mdsa.multi_scale.enabled=false"
            )
        return self
