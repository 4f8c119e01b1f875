"""Settings of what is done with trained models: making clips, measuring."""

from typing import Annotated, Literal

from pydantic import Field

from proav.config.changes import Changes
from proav.config.section import Count, LabelName, PositiveInt, Probability, Section, TaskName, UseGPU


class JobConfig(Section):
    """How every job deals with storage that fails and with being stopped."""

    changes = ("machine",)

    retry_seconds: Annotated[float, Field(ge=0, le=86_400)] = 120.0
    """For how long reads and writes that fail for a moment are tried again, with growing pauses."""
    stop_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """How long a job may take to end after SIGTERM or SIGINT; training writes a checkpoint in that time."""


class GenerateConfig(Section):
    """Making new clips from a trained model."""

    changes = ("samples",)

    num_samples: PositiveInt = 16
    """Clips to make."""
    task: TaskName = "joint"
    """joint: picture and sound; a2v: picture to given sound; v2a: sound to given picture."""
    label: LabelName | None = None
    """Label of all samples; empty: the labels of the data set in turn, or none where the model has none."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Denoising steps."""
    solver: str | None = None
    """euler, heun, dpmpp_2m or ddim; empty: euler for a flow, ddim for ddpm."""
    schedule_shift: Annotated[float, Field(ge=1, le=100)] | None = None
    """Times of sampling t become s t / (1 + (s - 1) t); empty: as in training."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    """Classifier-free guidance; 1 is none."""
    guidance_interval: tuple[Probability, Probability] = (0.0, 1.0)
    """Times, 0 clean and 1 noise, between which guidance acts."""
    batch_size: Annotated[PositiveInt, Changes("machine")] = 8
    """Clips made at a time."""
    num_workers: Annotated[PositiveInt, Changes("machine")] = 1
    """Generating actors."""
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: a GPU each if the cluster has any, or its autoscaler can add one."""
    checkpoint: str | None = None
    """A ST-DiT checkpoint; empty: the newest of this run."""


class EvaluateConfig(Section):
    """Measuring a run."""

    changes = ("numbers",)

    split: Literal["train", "validation"] = "validation"
    """Which sources the reconstruction and loss are measured on."""
    max_clips: PositiveInt = 256
    """Clips of a set at most, spread evenly, where the protocol does not say how many."""
    protocol: str = "small"
    """How generated and reconstructed clips are measured: small, full, mm-diffusion-64, mm-diffusion-256,
    pvdm, and world for clips of the made world (docs/evaluation.md, docs/world.md).
    """
    weights: Annotated[str | None, Changes("machine")] = None
    """Folder with the weights of feature networks, <network>.safetensors, and of LPIPS, lpips-vgg16.safetensors or lpips-alexnet.safetensors."""
    num_resamples: Annotated[int, Field(ge=20, le=10_000)] = 200
    """Draws of sources for each interval."""
    num_workers: Annotated[PositiveInt | None, Changes("machine")] = None
    """Measuring actors; empty: one for each CPU, or each GPU, of the cluster."""
    compare_with: str | None = None
    """metrics.json of another evaluation; its numbers are printed beside these if its protocol is the same, and refused otherwise."""
    samples_beside_training: Count = 0
    """Clips to make from each validated checkpoint of ST-DiT and to measure by the protocol (train.validate_every_clips); 0: none."""
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: GPUs if the cluster has any, or its autoscaler can add one."""
    real: str | None = None
    """Folder of real clips (video files, or data that preprocess.py has prepared); empty: the run's own."""
    fake: str | None = None
    """Folder of generated clips; empty: the run's own samples."""
