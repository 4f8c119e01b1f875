"""Which state of a training run is stored in a checkpoint, and how a run resumes from one.

The state does not depend on engine, ZeRO stage or number of workers: it is whole tensors by name, which each
engine splits for itself. The file format is in `proav/runs/checkpoint.py`.
"""

from collections.abc import Callable
from dataclasses import asdict, fields

import torch.distributed as dist

from proav.runs.checkpoint import Checkpoint, save_checkpoint
from proav.train.ema import ExponentialMovingAverage
from proav.train.engines import Engine
from proav.train.loop import LoopState, TrainingStep


def save_training(
    folder: str,
    engine: Engine,
    average: ExponentialMovingAverage,
    step: TrainingStep,
    state: LoopState,
    **description,
) -> str | None:
    """Writes a checkpoint of everything. Every worker calls it.

    folder: the folder of the stage's checkpoints.
    engine, average, step, state: of this worker's loop.
    description: kind, config, labels, latent statistics and so on, as `save_checkpoint` takes them.
    Returns the checkpoint's path on worker 0, None elsewhere.
    """
    moments, scalars = engine.optimizer_state()
    tensors = {
        "model": engine.assemble(engine.shards()),
        "ema": engine.assemble(average.shards),
        "training/optimizer": moments,
        **step.tensors(),
    }
    path = None
    if _rank() == 0:
        description["tensors"] = tensors | description.pop("tensors", {})
        path = save_checkpoint(
            folder,
            clips=state.clips,
            step=state.step,
            training={"engine": scalars, "loop": asdict(state)},
            **description,
        )
    if dist.is_initialized():
        dist.barrier()
    return path


def load_training(
    checkpoint: Checkpoint, engine: Engine, average: ExponentialMovingAverage, step: TrainingStep
) -> LoopState:
    """Restores the optimizer, the moving average and all networks except the model. Every worker calls it.

    The model's own weights are loaded before the engine is made (`checkpoint.weights("model")`).

    checkpoint: to resume from.
    engine, average, step: of this worker's loop; they are changed.
    Returns the state of the loop.
    """
    engine.load_optimizer_state(checkpoint.weights("training/optimizer"), checkpoint.training["engine"])
    average.load(engine.split(checkpoint.weights("ema")))
    step.load_tensors(checkpoint.weights)
    saved = checkpoint.training["loop"]
    state = LoopState(**{name.name: saved[name.name] for name in fields(LoopState) if name.name in saved})
    # zeros elsewhere, because all workers must sum the same names, also if a loss term is now off
    state.sums = {name: tuple(pair) if _rank() == 0 else (0.0, 0.0) for name, pair in saved["sums"].items()}
    return state


def on_worker_0(choose: Callable):
    """Calls `choose()` on worker 0. Its result is returned, or its error raised, on every worker."""
    result = [None, None]
    if _rank() == 0:
        try:
            result[0] = choose()
        except Exception as error:  # shared, so that no worker waits for a dead one; re-raised below
            result[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
