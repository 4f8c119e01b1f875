"""Settings of the generator ST-DiT, of the latents that it learns from, and of the noise process."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proav.config.changes import Changes
from proav.config.section import (
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    TaskName,
    UseGPU,
    VectorName,
    VectorShape,
    Weight,
)
from proav.config.training import STDiTTrainConfig


class EncodeConfig(Section):
    """Turning windows into stored latents, once MDSA is trained."""

    changes = ("latents",)

    stride_frames: PositiveInt = 4
    """Frames between the starts of encoded windows."""
    flips: bool = True
    """Store the horizontal mirror image of each training window as well."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of MDSA's network; its linear planes always compute in fp32. tf32: TF32 matrix products on a
    GPU; on CPUs the same as fp32. bf16: autocast. Planes are stored as float16 in any case.
    """
    batch_size: Annotated[PositiveInt, Changes("machine")] = 16
    """Windows encoded at a time."""
    num_workers: Annotated[PositiveInt, Changes("machine")] = 1
    """Encoding actors."""
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: a GPU for each actor if the cluster has any, or its autoscaler can add one."""
    replace: Annotated[bool, Changes("machine")] = False
    """Delete latents made by another MDSA, from other data or with other settings, and encode anew."""


class STDiTConfig(Section):
    """The spatio-temporal diffusion transformer over the stacked planes."""

    changes = ("stdit",)

    size: Literal["S", "B", "L", "XL", "custom"] = "B"
    """S 12x384, B 12x768, L 24x1024, XL 28x1152 (layers x width); custom: depth, width and num_heads."""
    depth: PositiveInt | None = None
    """Layers, with size=custom."""
    width: PositiveInt | None = None
    """Token width, with size=custom."""
    num_heads: PositiveInt | None = None
    """Attention heads, with size=custom."""
    patch_size: PositiveInt = 2
    """Cells along a token's side; divides mdsa.plane_size. Planes with fewer channels may have larger tokens.
    No token should hold more numbers (channels x cells) than the model is wide: see WIDE TOKENS in
    docs/troubleshooting.md.
    """
    attention: Literal["divided", "full"] = "divided"
    """divided: within a plane, then across the six planes. full: all tokens at once."""
    positions: Literal["axes", "plain"] = "axes"
    """axes: tokens of equal time, row or column share coordinates in all planes. plain: coordinates are each
    plane's rows and columns, whichever axes these are.
    """
    position_spacing: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Distance of neighbouring tokens in the picture, and in time. A model that starts from one of another
    size (init_from) keeps the coordinates of a place and of a second: a refused start says what to write.
    """
    mlp_ratio: PositiveInt = 4
    """Hidden width of the MLP, in multiples of width."""
    labels: bool = True
    """The model is conditioned on the labels of the data; false: it has no labels, only vectors."""
    label_dropout: Annotated[Probability, Changes("training")] = 0.1
    """Probability that a training clip loses its labels and its vectors; guidance needs such clips."""
    vectors: dict[VectorName, VectorShape] = {}
    """Vectors that the model is conditioned on, such as {caption: 384, words: [77, 768]}. 384: the width, for
    one vector a clip. [77, 768]: the largest number of vectors and their width, for a sequence. preprocess
    stores them (data.vectors). One vector modulates all tokens; the tokens attend to a sequence.
    """
    init_from: Annotated[str | None, Changes("training")] = None
    """A trained ST-DiT whose moving-average weights a new one starts from; its clips may have another size.
    Empty: random weights.
    """
    train: STDiTTrainConfig = STDiTTrainConfig()
    """How it is trained."""

    @model_validator(mode="after")
    def _check(self) -> "STDiTConfig":
        given = [name for name in ("depth", "width", "num_heads") if getattr(self, name) is not None]
        if self.size == "custom" and len(given) < 3:
            raise ValueError(
                "stdit.size=custom needs stdit.depth, stdit.width and stdit.num_heads; "
                f"given: {', '.join(given) or 'none'}"
            )
        if self.size != "custom" and given:
            raise ValueError(
                f"stdit.{given[0]} is fixed by stdit.size={self.size}; write stdit.size=custom to choose it"
            )
        depth, width, heads = self.shape
        if width % heads or (width // heads) % 2 or width % 4:
            raise ValueError(
                f"stdit.width={width} must be a multiple of 4 and split into "
                f"stdit.num_heads={heads} heads of an even width"
            )
        return self

    @property
    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: (width,) or (length, width)} of `vectors`."""
        return {name: (shape,) if isinstance(shape, int) else shape for name, shape in self.vectors.items()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, width, heads)."""
        named = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
        return named[self.size] if self.size != "custom" else (self.depth, self.width, self.num_heads)


class DiffusionConfig(Section):
    """The noise process and its training objective."""

    changes = ("stdit",)

    objective: Literal["flow", "ddpm", "flow_map"] = "flow"
    """flow: rectified flow, velocity target, Euler sampler. ddpm: noise target, DDIM sampler, as in PVDM.
    flow_map: average velocity between two times; only stage=distill makes such models, from a flow.
    """
    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of training times of the flow."""
    time_shift: Annotated[float, Field(ge=1, le=100)] = 1.0
    """Shift s of the flow's times: t becomes s t / (1 + (s - 1) t), nearer to noise; 1: no shift."""
    latent_scale: Annotated[Literal["plane", "channel"], Changes("stdit", "latents")] = "plane"
    """plane: one divisor per plane, so that strong channels stay strong. channel: one divisor per channel."""
    ddpm_steps: PositiveInt = 1000
    """Discrete times of ddpm."""
    ddpm_beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0015
    """First noise variance; the square roots of the variances are spaced evenly."""
    ddpm_beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.0195
    """Last noise variance."""
    ddim_eta: Annotated[float, Field(ge=0, le=1), Changes("samples")] = 0.0
    """0: deterministic DDIM; 1: ancestral noise."""
    task_weights: Annotated[dict[TaskName, Weight], Changes("training", "latents")] = {
        "joint": 0.7,
        "a2v": 0.1,
        "v2a": 0.1,
        "independent": 0.1,
    }
    """Share of each task in training. a2v: sound is given. v2a: picture is given. independent: each modality
    has a time of its own. i2av: the first picture is given. continue: the beginning of both is given.
    inpaint: all but a span is given. For each of the last three with a positive share, encode also stores the
    planes of masked clips. Each adds half of what is stored without them.
    """
    continue_frames: Annotated[PositiveInt | None, Changes("training", "latents")] = None
    """Frames given to the task continue, at the beginning of a clip. Windows of a long clip overlap by as
    many. Empty: half of a clip.
    """

    @model_validator(mode="after")
    def _check(self) -> "DiffusionConfig":
        if sum(self.task_weights.values()) <= 0:
            raise ValueError(
                "diffusion.task_weights are all zero; give at least one task a positive weight, "
                "such as {joint: 1.0}"
            )
        if self.ddpm_beta_start > self.ddpm_beta_end:
            raise ValueError(
                f"diffusion.ddpm_beta_start={self.ddpm_beta_start} is above "
                f"diffusion.ddpm_beta_end={self.ddpm_beta_end}"
            )
        return self
