"""The tasks as rows of a table: what is given, and how times are drawn.

A whole modality can be given, or any frames of both by a mask (`masks.py`). Not here: the sampling loop
(`proav/generation/denoise.py`) and the encoding of what is given (`proav/generation/pipeline.py`). The tasks
are our choice; the paper evaluates joint generation. Letters: B clips, T frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion import make_process, masks
from proav.diffusion.noise import uniforms_for
from proav.errors import ConfigError, UserError
from proav.geometry import MODALITIES


@dataclass(frozen=True)
class Task:
    """One row.

    given: the modality that is given: "video", "audio" or None. It enters clean, as its lone planes at time
        0, and carries no loss.
    own_times: whether each modality draws a time of its own; if not, all noisy planes share one.
    can_sample: whether clips can be made by the task; if not, it is for training only.
    mask: for a masked task, a function mask(config, uniforms [4]). It returns bool [2, T], the frames of a
        training clip that are given. The planes of the masked clip enter as condition channels. The noisy
        planes stay whole, and all of them carry the loss.
    asks_span: whether the mask differs from clip to clip. Whoever samples then says which frames are made.
    extends: whether the given clip is continued. What is made begins with its last frames.
    """

    given: str | None = None
    own_times: bool = False
    can_sample: bool = True
    mask: Callable[[Config, Tensor], Tensor] | None = None
    asks_span: bool = False
    extends: bool = False

    @property
    def reads(self) -> bool:
        """Whether something is given with a request: a modality, or frames of a clip."""
        return self.given is not None or self.mask is not None


TASKS = {
    "joint": Task(),
    "a2v": Task(given="audio"),
    "v2a": Task(given="video"),
    "independent": Task(own_times=True, can_sample=False),
    "i2av": Task(mask=masks.first_picture),
    "continue": Task(mask=masks.beginning, extends=True),
    "inpaint": Task(mask=masks.around_a_span, asks_span=True),
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
    """The row of a task that makes clips. Raises UserError for any other name; it lists the tasks."""
    available = [known for known, task in TASKS.items() if task.can_sample]
    if name not in available:
        raise ConfigError(
            f"generate.task={name} is not available; expected one of {', '.join(available)}, "
            f"such as generate.task={available[0]}"
        )
    return TASKS[name]


def masked_tasks(config: Config) -> tuple[str, ...]:
    """Names of the masked tasks that a run trains, in the order of the table."""
    weights = config.diffusion.task_weights
    return tuple(name for name, task in TASKS.items() if task.mask is not None and weights.get(name, 0) > 0)


def sampled_tasks(config: Config) -> tuple[str, ...]:
    """Names of the tasks by which a model of this configuration makes clips.

    A masked task needs to be trained: without it ST-DiT does not read the condition channels.
    """
    trained = masked_tasks(config)
    return tuple(
        name for name, task in TASKS.items() if task.can_sample and (task.mask is None or name in trained)
    )


def check_trained(name: str, config: Config) -> None:
    """Raises UserError if a model of this configuration makes no clips by the task `name`."""
    sampling_task(name)
    trained = sampled_tasks(config)
    if name not in trained:
        raise UserError(
            f"task={name!r}: {config.name} was not trained for it (diffusion.task_weights); "
            f"expected one of {', '.join(trained)}"
        )


def mask_of_window(
    name: str, config: Config, segment_id: str, start_frame: int, flipped: bool = False
) -> Tensor:
    """The mask of a masked task for a stored window, bool [2, T]: a function of these arguments alone.

    Nothing that is stored depends on the run's seed, so the mask does not either: runs that differ only in
    their seed share latents.

    name: of the task.
    config: of the run.
    segment_id: the segment that holds the window.
    start_frame: the window's first frame in the segment.
    flipped: whether its pictures are mirrored.
    """
    uniforms = uniforms_for(0, 2 * start_frame + flipped, 4, purpose=f"mask {name} {segment_id}")
    return TASKS[name].mask(config, uniforms)


def fixed_mask(name: str, config: Config) -> Tensor:
    """The mask of a masked task that is the same for every clip, bool [2, T]."""
    assert not TASKS[name].asks_span, f"the mask of {name} differs from clip to clip"
    return TASKS[name].mask(config, torch.zeros(4, dtype=torch.float64))


def task_names(seed: int, positions: Sequence[int], config: Config) -> tuple[str, ...]:
    """The task of each clip, equal to `names` of `draw_tasks`."""
    return _names_of(_uniforms_B4(seed, positions), config)


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
    uniforms_B4 = _uniforms_B4(seed, positions)
    names = _names_of(uniforms_B4, config)
    given_B2 = torch.tensor([given_row(name) for name in names])
    own_B1 = torch.tensor([[TASKS[name].own_times] for name in names])
    drawn_B2 = make_process(config).draw_times(uniforms_B4[:, 1:3])
    times_B2 = torch.where(own_B1, drawn_B2, drawn_B2[:, :1]).masked_fill(given_B2, 0.0)
    return TaskDraw(names, given_B2, times_B2.float(), uniforms_B4[:, 3] < config.stdit.label_dropout)


def _uniforms_B4(seed: int, positions: Sequence[int] | Tensor) -> Tensor:
    return torch.stack([uniforms_for(seed, int(position), 4, purpose="task") for position in positions])


def _names_of(uniforms_B4: Tensor, config: Config) -> tuple[str, ...]:
    weights = [config.diffusion.task_weights.get(name, 0.0) for name in TASKS]
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    # `right=True` skips tasks of weight zero; u < 1 keeps the last edge out.
    rows = torch.searchsorted(edges, uniforms_B4[:, 0] * edges[-1], right=True).tolist()
    return tuple(list(TASKS)[row] for row in rows)
