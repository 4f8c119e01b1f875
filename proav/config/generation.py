"""Settings for the use of trained models (making clips, measuring them), and settings of every job."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proav.config.changes import Changes
from proav.config.section import (
    Count,
    LabelName,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    TaskName,
    UseGPU,
    VectorName,
    guidance_scales,
)


class JobConfig(Section):
    """How every job handles failing storage and requests to stop."""

    changes = ("machine",)

    retry_seconds: Annotated[float, Field(ge=0, le=86_400)] = 120.0
    """Seconds for which reads and writes that fail for a moment are tried again, with growing pauses."""
    stop_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds within which a job ends after SIGTERM or SIGINT; training writes a checkpoint in this time."""


class GenerateConfig(Section):
    """Making new clips from a trained model."""

    changes = ("samples",)

    num_samples: PositiveInt = 16
    """Clips to make; with a listing, the column count says how many."""
    listing: str | None = None
    """CSV or Parquet: a row for each input, with the columns path, start_seconds, label, seconds, seed,
    count, span, stream and the names of stdit.vectors (docs/sampling.md). Empty: samples of `label`, or of
    labels or `prompts` in turn; a task with an input takes windows of the run's data.
    """
    prompts: tuple[str, ...] = ()
    """Texts that take turns, for a model that takes vectors: ['a glass falls', 'a drum']. The first of
    `encoders` turns them into vectors. Samples then have no label unless `label` names one. Instead of a
    listing.
    """
    task: TaskName = "joint"
    """joint: picture and sound. a2v: picture for given sound. v2a: sound for given picture. i2av: a clip from
    its first picture. continue: a clip is continued. inpaint: a span of a clip is made anew. Inputs are
    windows of the run's data, of the split evaluate.split.
    """
    label: LabelName | None = None
    """Label of all samples, or several with ; between them; empty: the labels of the data set in turn, or
    none if the model has none or there are prompts. With a listing, it is the label of the rows that have
    none; empty: they stay without a label.
    """
    seconds: PositiveFloat | Literal["file"] | None = None
    """Length of the clips, made in windows that overlap; for task=continue including the given clip. file: as
    long as the given file, for a2v and v2a. With a listing, it is the length of the rows that have none.
    Empty: one window, the model's own length.
    """
    encoders: dict[VectorName, str] = {}
    """Functions that turn prompts, and texts of a listing, into vectors: {caption: package.module:function},
    called with a list of texts. Without one, the listing's column holds vectors.
    """
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps; empty: 4 for a flow map, 30 for other models."""
    solver: str | None = None
    """How a step is computed: docs/sampling.md lists the solvers; empty: euler for a flow, ddim for ddpm,
    flow_map for a flow map.
    """
    schedule_shift: Annotated[float, Field(ge=1, le=100)] | None = None
    """Shift s of the sampling times: t becomes s t / (1 + (s - 1) t); empty: as in training."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    """Scale of classifier-free guidance; 1: no guidance. A flow map has a fixed scale and takes no other."""
    audio_guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    """The scale for the sound; empty: as for the pictures."""
    guidance_interval: tuple[Probability, Probability] = (0.0, 1.0)
    """Times between which guidance acts; 0 is clean, 1 is noise."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of ST-DiT. fp32: on a GPU with TF32 matrix products. bf16: autocast, faster on a GPU."""
    batch_size: Annotated[PositiveInt, Changes("machine")] = 8
    """Clips made at a time."""
    num_workers: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], Changes("machine")] = 1
    """Generating actors, one for each GPU if there are GPUs; [MIN,MAX] grows with the cluster."""
    num_writers: Annotated[Count | None, Changes("machine")] = None
    """Most actors that turn mel images into sound and write the files while others generate; each takes a
    CPU. 0: each generating actor does this itself. Empty: with GPUs all CPUs that are left, otherwise 0.
    """
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: a GPU for each actor if the cluster has any, or its autoscaler can add one."""
    stage: Literal["stdit", "distill"] = "stdit"
    """Which model of the run makes the clips: ST-DiT, or the flow map of stage=distill, in few steps."""
    checkpoint: str | None = None
    """A checkpoint of either stage; empty: the newest of this run."""

    @model_validator(mode="after")
    def _check(self) -> "GenerateConfig":
        least, most = self.worker_range
        if least > most:
            raise ValueError(
                f"generate.num_workers=[{least},{most}]: MIN is above MAX; write [{most},{least}]"
            )
        if not all(map(str.strip, self.prompts)):
            raise ValueError(
                "generate.prompts holds an empty text; expected such as generate.prompts=['a glass falls',"
                "'a drum'], or [] for none"
            )
        if self.listing is not None and self.prompts:
            raise ValueError(
                f"generate.listing={self.listing} and {len(self.prompts)} generate.prompts: expected one of "
                "the two. A listing names texts in a column of its own; write generate.prompts=[] beside it"
            )
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the greatest number of generating actors."""
        return (self.num_workers,) * 2 if isinstance(self.num_workers, int) else self.num_workers

    @property
    def guidance_scales(self) -> tuple[float, float]:
        """(video's, audio's)."""
        return guidance_scales(self.guidance_scale, self.audio_guidance_scale)


class EvaluateConfig(Section):
    """Measuring a run."""

    changes = ("numbers",)

    split: Literal["train", "validation"] = "validation"
    """The sources on which reconstruction and loss are measured."""
    max_clips: PositiveInt = 256
    """Most clips of a set, spread evenly. For generated clips and the real ones beside them, a protocol may
    have an exact number of its own.
    """
    protocol: str = "small"
    """How generated and reconstructed clips are measured: small, full, mm-diffusion-64, mm-diffusion-256 or
    pvdm; for clips of the made world also world (docs/evaluation.md, docs/world.md).
    """
    weights: Annotated[str | None, Changes("machine")] = None
    """Folder with the weights of feature networks (<network>.safetensors) and of LPIPS
    (lpips-vgg16.safetensors or lpips-alexnet.safetensors).
    """
    num_resamples: Annotated[int, Field(ge=20, le=10_000)] = 200
    """Bootstrap resamples of the sources for each confidence interval."""
    num_workers: Annotated[PositiveInt | None, Changes("machine")] = None
    """Measuring actors; empty: one for each CPU, or each GPU, of the cluster."""
    compare_with: str | None = None
    """metrics.json of another evaluation. Its numbers are printed beside this one's. It must have the same
    protocol.
    """
    samples_beside_training: Count = 0
    """Clips to make from each validated checkpoint of ST-DiT (train.validate_every_clips) and to measure by
    the protocol; 0: none.
    """
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: GPUs if the cluster has any, or its autoscaler can add one."""
    real: str | None = None
    """Folder of real clips (video files, or data that preprocess.py has prepared); empty: the run's own."""
    fake: str | None = None
    """Folder of generated clips; empty: the run's own samples."""
