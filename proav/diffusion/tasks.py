"""The tasks as rows of a table: which modality is given, and how times are drawn.

Not here: the sampling loop (`proav/generation/denoise.py`) and the encoding of given streams
(`proav/generation/pipeline.py`). The tasks are our choice; the paper evaluates joint generation. Letters: B
clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion import make_process
from proav.diffusion.noise import uniforms_for
from proav.errors import ConfigError
from proav.geometry import MODALITIES


@dataclass(frozen=True)
class Task:
    """One row.

    given: the modality that is given: "video", "audio" or None. It enters clean, as its lone planes at time
    0, and carries no loss.
    own_times: each modality draws a time of its own; otherwise all noisy planes share one.
    can_sample: whether clips can be made with it; if not, the task is for training only.
    """

    given: str | None = None
    own_times: bool = False
    can_sample: bool = True


TASKS = {
    "joint": Task(),
    "a2v": Task(given="audio"),
    "v2a": Task(given="video"),
    "independent": Task(own_times=True, can_sample=False),
}


@dataclass(frozen=True)
class TaskDraw:
    """What the clips of a training batch are trained for.

    names: of the tasks, [B].
    given_B2: bool.
    times_B2: float32 in [0, 1], 0 for a given modality.
    drop_label_B: bool; True: train this clip with the null label.
    """

    names: tuple[str, ...]
    given_B2: Tensor
    times_B2: Tensor
    drop_label_B: Tensor


def given_row(name: str) -> list[bool]:
    """[video is given, audio is given] in the task `name`."""
    return [TASKS[name].given == modality for modality in MODALITIES]


def sampling_task(name: str) -> Task:
    """The row of a task that makes clips. Raises UserError for any other name, and lists those that can."""
    available = [known for known, task in TASKS.items() if task.can_sample]
    if name not in available:
        raise ConfigError(
            f"generate.task={name} is not available; expected one of {', '.join(available)}, "
            f"such as generate.task={available[0]}"
        )
    return TASKS[name]


def check_tasks(config: Config) -> None:
    """Raises UserError if generate.task or diffusion.task_weights names a task that is not offered."""
    sampling_task(config.generate.task)
    for name in config.diffusion.task_weights:
        if name not in TASKS:
            raise ConfigError(
                f"diffusion.task_weights: there is no task {name}; expected some of {', '.join(TASKS)}, "
                "such as diffusion.task_weights={joint: 1.0}"
            )


def draw_tasks(seed: int, positions: Sequence[int] | Tensor, config: Config) -> TaskDraw:
    """Task, times and label dropout of each clip, as a function of (seed, position) alone.

    positions: of the clips in the training order. The task follows config.diffusion.task_weights, the times
    config.diffusion's process, the dropout config.stdit.label_dropout.
    """
    positions = [int(position) for position in positions]
    weights = {name: config.diffusion.task_weights.get(name, 0.0) for name in TASKS}
    edges = torch.tensor(list(weights.values()), dtype=torch.float64).cumsum(0)
    uniforms_B4 = torch.stack([uniforms_for(seed, position, 4, purpose="task") for position in positions])
    # `right=True` skips tasks of weight zero; u < 1 keeps the last edge out.
    rows = torch.searchsorted(edges, uniforms_B4[:, 0] * edges[-1], right=True).tolist()
    names = tuple(list(TASKS)[row] for row in rows)
    given_B2 = torch.tensor([given_row(name) for name in names])
    own_B1 = torch.tensor([[TASKS[name].own_times] for name in names])
    drawn_B2 = make_process(config).draw_times(uniforms_B4[:, 1:3])
    times_B2 = torch.where(own_B1, drawn_B2, drawn_B2[:, :1]).masked_fill(given_B2, 0.0)
    return TaskDraw(names, given_B2, times_B2.float(), uniforms_B4[:, 3] < config.stdit.label_dropout)
