"""Batches prepared by Ray actors: on nodes without GPUs while the GPUs train. Only who prepares which step; what a batch holds is `feed`.

Actor k of n prepares the steps start + k, start + k + n, ...; each batch is a function of its step alone, so that an actor that dies is
simply asked again, by its successor. Batches come back through the object store, a bounded number at a time, and are handed on in order.
"""

import itertools
import math
import pickle
from collections import deque
from collections.abc import Iterator

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError

from proav.data.feeds.feed import PREFETCH_BATCHES, Feed
from proav.errors import UserError

MAX_DEATHS = 4
"""Actors that die while a batch is asked of them before it is held to be the batch's fault; the death over the batch before it counts too."""
WAIT_SECONDS = 30.0
"""How long the actors may take to start before it is said what is waited for."""


def actor_batches(
    feed: Feed, start_step: int, *, rank: int, world: int, num_actors: int, pin_memory: bool = False
) -> Iterator[dict]:
    """Batches of start_step, start_step + 1, ... of this rank without end, in order; closing the iterator ends the actors.

    Raises UserError where Ray is not running, RuntimeError where a batch kills every actor that prepares it.
    """
    if not ray.is_initialized():
        raise UserError(
            "train.loader=actors needs Ray, which is not running here; write train.loader=processes"
        )
    return _in_order(feed, start_step, rank, world, num_actors, pin_memory)


def _in_order(
    feed: Feed, start_step: int, rank: int, world: int, num_actors: int, pin_memory: bool
) -> Iterator[dict]:
    # SPREAD also leaves a training worker's own bundle of resources, in which there is no room.
    options = {
        "num_cpus": 1,
        "num_gpus": 0,
        "scheduling_strategy": "SPREAD",
        "max_restarts": -1,
        "max_task_retries": MAX_DEATHS - 1,
    }
    stored = [ray.put(pickle.dumps(feed))]  # in a list: an actor fetches it itself, once, its successor again
    actors = [
        _Preparer.options(**options).remote() for _ in range(num_actors)
    ]  # they end when this generator does
    _tell_if_waiting(actors)
    steps, asked = itertools.count(start_step), deque()
    for step in itertools.count(start_step):
        while len(asked) < num_actors * PREFETCH_BATCHES:
            coming = next(steps)
            asked.append(actors[(coming - start_step) % num_actors].batch.remote(stored, coming, rank, world))
        try:
            batch = ray.get(asked[0])
        except RayActorError as error:
            raise RuntimeError(
                f"step {step}, worker {rank}: every actor that prepared this batch died ({' '.join(str(error).split())[:300]}); "
                "as a rule their memory was full: write fewer train.loader_workers"
            ) from error
        asked.popleft()
        if isinstance(batch, UserError):
            raise batch
        yield {
            name: torch.tensor(values, pin_memory=pin_memory) if isinstance(values, np.ndarray) else values
            for name, values in batch.items()
        }


def _tell_if_waiting(actors: list) -> None:
    """Ray waits without a word for CPUs that are not there: says what is waited for."""
    started, missing = ray.wait(
        [actor.__ray_ready__.remote() for actor in actors], num_returns=len(actors), timeout=WAIT_SECONDS
    )
    if missing:
        free, everywhere = (
            math.floor(found.get("CPU", 0)) for found in (ray.available_resources(), ray.cluster_resources())
        )
        print(
            f"train: {len(started)} of a worker's {len(actors)} loading actors have started after {WAIT_SECONDS:g} s; each needs a CPU, and of the "
            f"cluster's {everywhere} are {free} free: add nodes, or write fewer train.loader_workers or train.loader=processes"
        )


@ray.remote
class _Preparer:
    """Prepares batches, one at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.feed: Feed | None = None

    def batch(self, stored: list[ray.ObjectRef], step: int, rank: int, world: int) -> dict | UserError:
        """NumPy arrays, which cross the object store without a copy, in place of tensors; a user's mistake as a value, past Ray's wrapping."""
        try:
            self.feed = self.feed or pickle.loads(ray.get(stored[0]))
            batch = self.feed.batch(step, rank=rank, world=world)
        except UserError as error:
            return error
        return {name: values.numpy() if torch.is_tensor(values) else values for name, values in batch.items()}
