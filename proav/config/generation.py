"""Settings of what is done with trained models (making clips, measuring), and settings of every job."""

from typing import Annotated, Literal

from pydantic import Field

from proav.config.changes import Changes
from proav.config.section import Count, LabelName, PositiveInt, Probability, Section, TaskName, UseGPU


class JobConfig(Section):
    """How every job handles failing storage and requests to stop."""

    changes = ("machine",)

    retry_seconds: Annotated[float, Field(ge=0, le=86_400)] = 120.0
    """Seconds for which reads and writes that fail for a moment are tried again, with growing pauses."""
    stop_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds within which a job ends after SIGTERM or SIGINT; training writes a checkpoint in them."""


class GenerateConfig(Section):
    """Making new clips from a trained model."""

    changes = ("samples",)

    num_samples: PositiveInt = 16
    """Clips to make."""
    task: TaskName = "joint"
    """joint: picture and sound. a2v: picture for given sound. v2a: sound for given picture."""
    label: LabelName | None = None
    """Label of all samples; empty: the labels of the data set in turn, or none if the model has none."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps; empty: 4 for a flow map, 30 for other models."""
    solver: str | None = None
    """How a step is made: docs/sampling.md lists the solvers; empty: euler for a flow, ddim for ddpm,
    flow_map for a flow map.
    """
    schedule_shift: Annotated[float, Field(ge=1, le=100)] | None = None
    """Shift s of the sampling times: t becomes s t / (1 + (s - 1) t); empty: as in training."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    """Scale of classifier-free guidance; 1: no guidance. A flow map has its own scale, and takes no other."""
    guidance_interval: tuple[Probability, Probability] = (0.0, 1.0)
    """Times between which guidance acts; 0 is clean, 1 is noise."""
    batch_size: Annotated[PositiveInt, Changes("machine")] = 8
    """Clips made at a time."""
    num_workers: Annotated[PositiveInt, Changes("machine")] = 1
    """Generating actors."""
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: a GPU for each actor if the cluster has any, or its autoscaler can add one."""
    checkpoint: str | None = None
    """A ST-DiT checkpoint; empty: the newest of this run."""


class EvaluateConfig(Section):
    """Measuring a run."""

    changes = ("numbers",)

    split: Literal["train", "validation"] = "validation"
    """The sources on which reconstruction and loss are measured."""
    max_clips: PositiveInt = 256
    """Most clips of a set, spread evenly, if the protocol does not say how many."""
    protocol: str = "small"
    """How generated and reconstructed clips are measured: small, full, mm-diffusion-64, mm-diffusion-256,
    pvdm; for clips of the made world: world (docs/evaluation.md, docs/world.md).
    """
    weights: Annotated[str | None, Changes("machine")] = None
    """Folder with the weights of feature networks (<network>.safetensors) and of LPIPS
    (lpips-vgg16.safetensors or lpips-alexnet.safetensors).
    """
    num_resamples: Annotated[int, Field(ge=20, le=10_000)] = 200
    """Bootstrap draws of sources for each interval."""
    num_workers: Annotated[PositiveInt | None, Changes("machine")] = None
    """Measuring actors; empty: one for each CPU, or each GPU, of the cluster."""
    compare_with: str | None = None
    """metrics.json of another evaluation. Its numbers are printed beside these if its protocol is the same,
    and refused otherwise.
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
