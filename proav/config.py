"""Every setting of a run: typed, documented, in one place; a section is a component.

The defaults are the paper's scale on Landscape (16 frames of 256x256 at 10 fps, sound at 16 kHz); a YAML file names what differs.
Reading YAML and command lines is `proav/settings.py`; sizes that follow from these settings are `proav/geometry.py`.
Rules between fields are checked here, at construction, before any work starts.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Stage = Literal["mdsa", "stdit", "distill"]
TaskName = Literal["joint", "a2v", "v2a", "i2av", "continue"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True)


class ClipConfig(Section):
    """What one clip is: the window of picture and sound that the model sees and makes."""

    num_frames: Annotated[int, Field(ge=2)] = 16
    """Frames per clip, T."""
    fps: Annotated[int, Field(ge=1, le=240)] = 10
    """Frames per second; pictures are resampled to it by their time stamps."""
    height: Annotated[int, Field(ge=16)] = 256
    """Rows of a frame, H, in pixels."""
    width: Annotated[int, Field(ge=16)] = 256
    """Columns of a frame, W, in pixels."""
    sample_rate: Annotated[int, Field(ge=1000)] = 16000
    """Sound samples per second, mono, in Hz; a whole number of samples must fit in a frame."""


class MelConfig(Section):
    """How sound becomes mel images with the video's own T x H x W, and back."""

    num_bins: PositiveInt = 128
    """Mel bands, M; must divide clip.height."""
    n_fft: Annotated[int, Field(ge=16)] = 512
    """Samples in one Fourier window (Hann); short windows keep the onsets that synchronization lives on."""
    hop: PositiveInt = 100
    """Samples between mel columns; a whole number of columns must fit in a frame and divide clip.width."""
    min_hz: Annotated[float, Field(ge=0)] = 0.0
    """Lower edge of the lowest band, Hz."""
    max_hz: PositiveFloat = 8000.0
    """Upper edge of the highest band, Hz; at most half of clip.sample_rate."""
    floor_log10: float = -5.0
    """log10 of the mel magnitude that becomes -1."""
    ceiling_log10: float = 1.0
    """log10 of the mel magnitude that becomes +1."""
    transform: Literal["whole", "segment"] = "whole"
    """whole: one Fourier transform over the sound, its columns cut into frames. segment: each frame's sound is cut out and transformed alone."""
    griffin_lim_iterations: PositiveInt = 32
    """Rounds of fast Griffin-Lim when sound is made from mel images."""
    griffin_lim_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Momentum of fast Griffin-Lim; 0 is the plain method."""


class DataConfig(Section):
    """Where clips come from and how they are stored."""

    sources: tuple[str, ...] = ()
    """Folders, files or globs of videos with sound, local or remote. Label: the name of the first folder below the source, if any."""
    listing: str | None = None
    """CSV or Parquet with a column path (relative to the listing) and, as wanted, start_seconds, end_seconds, labels, split (train | validation)."""
    labels: tuple[str, ...] = ()
    """The label vocabulary, in the order of the label embedding; empty: every label that preprocess finds, sorted."""
    segment_seconds: PositiveFloat = 10.0
    """A source is stored in segments of at most this length, in seconds; windows are drawn from them."""
    frame_codec: Literal["raw", "jpeg"] = "jpeg"
    """raw: uint8 pixels, for tiny sets. jpeg: one JPEG a frame, random access at about a seventh of the bytes."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 92
    """JPEG quality of stored frames."""
    fit: Literal["pad", "crop"] = "pad"
    """pad: the whole picture, black bars around it (what the published tables use). crop: the centre, no bars."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of *sources* held out where the listing names no split; a source is never on both sides."""
    rows_per_shard: PositiveInt = 64
    """Segments in one Parquet file."""
    num_workers: PositiveInt | None = None
    """Decoding tasks at a time; empty: one a CPU of the cluster."""
    source_timeout_seconds: PositiveFloat = 300.0
    """A source that takes longer to decode is rejected with the reason `timeout`."""


class TrainConfig(Section):
    """How one model is trained. Durations are counted in clips, so that batch size and worker count can change."""

    num_clips: PositiveInt = 1_000_000
    """How long to train, in clips seen."""
    batch_size: PositiveInt = 64
    """Clips per optimizer step, over all workers and accumulation steps."""
    accumulation_steps: PositiveInt = 1
    """Forward and backward passes per optimizer step; batch_size is split over them."""
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Training processes, one a GPU where there are GPUs; [MIN,MAX] is elastic."""
    use_gpu: bool | Literal["auto"] = "auto"
    """auto: a GPU a worker if the cluster has any."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that a worker reserves; also its torch threads where it has no GPU."""
    loader_workers: Count = 0
    """Decoding processes a worker; 0: decode in the training process."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """deepspeed: ZeRO. torch: plain data parallel, no DeepSpeed needed."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO: 0 nothing, 1 optimizer state, 2 gradients, 3 parameters are sharded over the workers."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of the forward and backward pass; statistics, losses, EMA and master weights stay fp32."""
    activation_checkpointing: bool = False
    """Recompute block activations in the backward pass: less memory, about a third more time."""
    learning_rate: PositiveFloat = 1e-4
    """AdamW's step size after warm-up; constant from there."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """AdamW's two averaging factors."""
    weight_decay: Weight = 0.0
    """AdamW's decoupled weight decay."""
    warmup_clips: Count = 320_000
    """The learning rate grows linearly over this many clips."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    ema_half_life_clips: PositiveFloat = 440_000
    """Clips after which a weight's share in the moving average has halved (440,000 is 0.9999 a step at batch 64)."""
    ema_ramp_up: PositiveFloat = 0.05
    """The half-life is at most this share of the clips seen so far, so that early averages forget the initialization."""
    checkpoint_every_clips: PositiveInt = 64_000
    """Clips between checkpoints; one more is written at the end."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are removed."""
    report_every_clips: PositiveInt = 3_200
    """Clips between lines of metrics.jsonl."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts from the last checkpoint after a worker or node is lost; -1: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _without_zero(cls, values: Any) -> Any:
        """engine=torch alone means zero_stage=0, so that a resolved configuration can be read again."""
        return {"zero_stage": 0, **values} if isinstance(values, dict) and values.get("engine") == "torch" else values

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        most = self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
        if not isinstance(self.num_workers, int) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"train.num_workers={list(self.num_workers)}: MIN is above MAX; write [{self.num_workers[1]},{self.num_workers[0]}]")
        least = most if isinstance(self.num_workers, int) else self.num_workers[0]
        per_step = math.lcm(*range(least, most + 1)) * self.accumulation_steps
        if self.batch_size % per_step:
            lower = max(per_step, self.batch_size // per_step * per_step)
            workers = f"{most}" if least == most else f"{least} to {most}"
            raise ValueError(
                f"train.batch_size={self.batch_size} does not split over {workers} workers x {self.accumulation_steps} accumulation steps; "
                f"expected a multiple of {per_step}, such as train.batch_size={lower}"
            )
        if self.num_clips < self.batch_size:
            raise ValueError(f"train.num_clips={self.num_clips} is less than one batch; expected at least train.batch_size={self.batch_size}")
        if self.engine == "torch" and self.zero_stage > 0:
            raise ValueError(
                f"train.engine=torch shards nothing, but train.zero_stage={self.zero_stage}; write train.zero_stage=0 or train.engine=deepspeed"
            )
        return self


class MDSATrainConfig(TrainConfig):
    """MDSA's training: the same settings, with PVDM's values."""

    num_clips: PositiveInt = 1_200_000
    """How long to train, in clips seen."""
    batch_size: PositiveInt = 24
    """Clips per optimizer step, over all workers and accumulation steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.9)
    """AdamW's two averaging factors."""
    warmup_clips: Count = 0
    """The learning rate grows linearly over this many clips."""


class STDiTTrainConfig(TrainConfig):
    """ST-DiT's training: the same settings, at the length of the published comparisons (100,000 steps of 64)."""

    num_clips: PositiveInt = 6_400_000
    """How long to train, in clips seen."""


class MultiScaleConfig(Section):
    """MT-SelfAttn: temporal self-attention at several scales, on the planes that have time (WT, HT)."""

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

    enabled: bool = True
    """Off: the plane passes unchanged."""
    num_heads: PositiveInt = 8
    """Attention heads."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class GroupCrossConfig(Section):
    """GCM-Attn: cross-modal attention within temporal groups, in both directions, on WT and HT."""

    enabled: bool = True
    """Off: the modalities do not meet in the encoder."""
    num_groups: PositiveInt = 4
    """Contiguous temporal groups, G; divides clip.num_frames."""
    num_heads: PositiveInt = 8
    """Attention heads."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class BiBlockConfig(Section):
    """Bi-Block CrossAttn: cross-modal attention between equal blocks of the two modalities' planes, on the decoder's side."""

    enabled: bool = True
    """Off: the modalities do not meet in the decoder."""
    block_size: PositiveInt = 4
    """Side of a block, in plane cells; divides the sides of the planes it is applied to."""
    global_tokens: bool = True
    """Each block also sees the mean of every other block of the other modality."""
    apply_to: Literal["HW", "all"] = "HW"
    """HW, or all three planes."""
    num_heads: PositiveInt = 8
    """Attention heads."""
    repeats: PositiveInt = 1
    """Modules in a row."""


class MDSALossConfig(Section):
    """The autoencoder's objective."""

    pixel: Weight = 4.0
    """L1 on all frames."""
    perceptual: Weight = 4.0
    """LPIPS on one random frame per clip; only where perceptual_weights names the network."""
    perceptual_weights: str | None = None
    """File with LPIPS weights (safetensors); empty: multi_scale_gradient takes its place, and every result says so."""
    multi_scale_gradient: Weight = 1.0
    """L1 on image gradients at three resolutions, used without perceptual weights."""
    audio: Weight = 1.0
    """Weight of the whole audio part against the video part."""
    mel: Weight = 4.0
    """L1 on the native mel grid (the block mean of the image)."""
    mel_difference: Weight = 1.0
    """L1 on differences between neighbouring mel columns and bands."""
    adversarial: Weight = 1.0
    """Hinge loss against the discriminators."""
    feature_matching: Weight = 4.0
    """L1 between the discriminators' feature maps of real and decoded clips."""
    adversarial_start_clips: Count = 800_000
    """Clips seen before the discriminators enter; beyond train.num_clips: never."""
    discriminator_width: PositiveInt = 64
    """Channels of a discriminator's first layer."""
    discriminator_layers: PositiveInt = 3
    """Strided layers of a discriminator."""
    discriminator_learning_rate: PositiveFloat = 1e-4
    """AdamW's step size for the discriminators."""


class MDSAConfig(Section):
    """The Multi-scale Dual-stream Spatio-temporal Autoencoder."""

    plane_size: PositiveInt = 16
    """Rows and columns N of the HW plane and of the stacked latent; the patch follows, P = H / N. At least clip.num_frames."""
    latent_channels: PositiveInt = 16
    """Channels D of a plane."""
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
    """Its heads, each of width / 8 channels."""
    collapse_mlp_width: PositiveInt = 512
    """Its MLP's hidden width."""
    audio_input: Literal["native", "tiled"] = "native"
    """native: patches of the T x M x S mel grid. tiled: of the T x H x W image (equal in reach, larger in cost)."""
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
    modality_dropout: Probability = 0.1
    """Training probability, each, of dropping what flows toward audio, toward video, or both."""
    loss: MDSALossConfig = MDSALossConfig()
    """The objective."""
    train: MDSATrainConfig = MDSATrainConfig()
    """How it is trained."""

    @model_validator(mode="after")
    def _check(self) -> "MDSAConfig":
        if 3 * self.modality_dropout > 1:
            raise ValueError(f"mdsa.modality_dropout={self.modality_dropout} is used for three cases; expected at most 1/3")
        if self.head_width % 4:
            raise ValueError(f"mdsa.head_width={self.head_width} must be a multiple of 4 (axial rotary positions)")
        if self.width % 8:
            raise ValueError(f"mdsa.width={self.width} must be a multiple of 8 (collapse heads are width / 8 wide)")
        for name in ("multi_scale", "spatial", "group_cross", "bi_block"):
            heads = getattr(self, name).num_heads
            if self.width % heads:
                raise ValueError(f"mdsa.{name}.num_heads={heads} does not divide mdsa.width={self.width}")
        if not self.multi_scale.scales:
            raise ValueError("mdsa.multi_scale.scales=[] names no scale; write [1,2,4], or mdsa.multi_scale.enabled=false")
        return self


class EncodeConfig(Section):
    """Turning windows into stored latents, once MDSA is trained."""

    stride_frames: PositiveInt = 4
    """Frames between the starts of encoded windows."""
    flips: bool = True
    """Store the horizontal mirror image of each training window as well."""
    batch_size: PositiveInt = 16
    """Windows encoded at a time."""
    num_workers: PositiveInt = 1
    """Encoding actors, one a GPU where there are GPUs."""


class STDiTConfig(Section):
    """The spatio-temporal diffusion transformer over the stacked planes."""

    size: Literal["S", "B", "L", "XL", "custom"] = "B"
    """S 12x384, B 12x768, L 24x1024, XL 28x1152 (layers x width); custom: depth, width and num_heads."""
    depth: PositiveInt | None = None
    """Layers, with size=custom."""
    width: PositiveInt | None = None
    """Token width, with size=custom."""
    num_heads: PositiveInt | None = None
    """Attention heads, with size=custom."""
    patch_size: PositiveInt = 2
    """Rows and columns of plane cells in a token; divides mdsa.plane_size."""
    attention: Literal["divided", "full"] = "divided"
    """divided: within a plane, then across the six planes. full: all tokens at once."""
    mlp_ratio: PositiveInt = 4
    """Hidden width of the MLP, in multiples of width."""
    label_dropout: Probability = 0.1
    """Training probability of replacing the label by the null label, which guidance needs."""
    train: STDiTTrainConfig = STDiTTrainConfig()
    """How it is trained."""

    @model_validator(mode="after")
    def _check(self) -> "STDiTConfig":
        given = [name for name in ("depth", "width", "num_heads") if getattr(self, name) is not None]
        if self.size == "custom" and len(given) < 3:
            raise ValueError(f"stdit.size=custom needs stdit.depth, stdit.width and stdit.num_heads; given: {', '.join(given) or 'none'}")
        if self.size != "custom" and given:
            raise ValueError(f"stdit.{given[0]} is fixed by stdit.size={self.size}; write stdit.size=custom to choose it")
        depth, width, heads = self.shape
        if width % heads or (width // heads) % 2 or width % 4:
            raise ValueError(f"stdit.width={width} must be a multiple of 4 and split into stdit.num_heads={heads} heads of an even width")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, width, heads)."""
        named = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
        return named[self.size] if self.size != "custom" else (self.depth, self.width, self.num_heads)


class DiffusionConfig(Section):
    """The noise process and its training objective."""

    objective: Literal["flow", "ddpm"] = "flow"
    """flow: rectified flow, velocity target, Euler sampler. ddpm: noise target, DDIM sampler (PVDM's settings)."""
    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of training times of the flow."""
    ddpm_steps: PositiveInt = 1000
    """Discrete times of ddpm."""
    ddpm_beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0015
    """First variance; the square roots are spaced evenly."""
    ddpm_beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.0195
    """Last variance."""
    ddim_eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: deterministic DDIM; 1: ancestral noise."""
    task_weights: dict[Literal["joint", "a2v", "v2a", "independent"], Weight] = {"joint": 0.7, "a2v": 0.1, "v2a": 0.1, "independent": 0.1}
    """Share of each task in training; a2v: sound given, v2a: picture given, independent: a time of its own per modality."""

    @model_validator(mode="after")
    def _check(self) -> "DiffusionConfig":
        if sum(self.task_weights.values()) <= 0:
            raise ValueError("diffusion.task_weights are all zero; give at least one task a positive weight, such as {joint: 1.0}")
        if self.ddpm_beta_start > self.ddpm_beta_end:
            raise ValueError(f"diffusion.ddpm_beta_start={self.ddpm_beta_start} is above diffusion.ddpm_beta_end={self.ddpm_beta_end}")
        return self


class GenerateConfig(Section):
    """Making new clips from a trained model."""

    num_samples: PositiveInt = 16
    """Clips to make."""
    task: TaskName = "joint"
    """joint: picture and sound; a2v: picture to given sound; v2a: sound to given picture."""
    label: str | None = None
    """Label of all samples; empty: the labels of the data set in turn, or none where the model has none."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    """Classifier-free guidance; 1 is none."""
    batch_size: PositiveInt = 8
    """Clips made at a time."""
    num_workers: PositiveInt = 1
    """Generating actors, one a GPU where there are GPUs."""
    checkpoint: str | None = None
    """A ST-DiT checkpoint; empty: the newest of this run."""


class EvaluateConfig(Section):
    """Measuring a run."""

    split: Literal["train", "validation"] = "validation"
    """Which sources the reconstruction and loss are measured on."""
    max_clips: PositiveInt = 256
    """Clips used at most, spread evenly over the segments."""
    real: str | None = None
    """Folder of real clips (video files or shards); empty: the run's own."""
    fake: str | None = None
    """Folder of generated clips; empty: the run's own samples."""


class Config(Section):
    """One run, from source video to served sample."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "landscape"
    """Name of the run."""
    run_dir: str | None = None
    """Where everything goes, local or remote; empty: runs/<name>."""
    seed: Count = 0
    """All randomness is a function of this and an index."""
    stage: Stage | None = None
    """Which model train.py trains; empty: mdsa, encode, stdit, each unless done."""
    clip: ClipConfig = ClipConfig()
    """Clip shape and rates."""
    mel: MelConfig = MelConfig()
    """Mel images."""
    data: DataConfig = DataConfig()
    """Sources and storage."""
    mdsa: MDSAConfig = MDSAConfig()
    """Autoencoder."""
    encode: EncodeConfig = EncodeConfig()
    """Stored latents."""
    stdit: STDiTConfig = STDiTConfig()
    """Generator."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise process."""
    generate: GenerateConfig = GenerateConfig()
    """Sampling."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Measuring."""

    @property
    def run_folder(self) -> str:
        """`run_dir`, or runs/<name>."""
        return self.run_dir or f"runs/{self.name}"

    @model_validator(mode="after")
    def _check(self) -> "Config":
        from proav.geometry import check_geometry

        check_geometry(self)
        return self
