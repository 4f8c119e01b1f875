"""Batches prepared by Ray actors, for example on nodes without GPUs while the GPUs train.

This file decides only which actor prepares which step. What a batch holds is decided in `feed.py`.

Actor k of n prepares the steps start + k, start + k + n, ... Each batch is a function of its step alone. So
if an actor dies, its successor prepares the same batch. Batches come back through the object store, a bounded
number at a time, and are handed on in order.
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
"""A batch is given up if this many actors die before they return it. Deaths during an earlier batch of the
same actor count too.
"""
WAIT_SECONDS = 30.0
"""If the actors take longer than this to start, a message says what they are waiting for."""


def actor_batches(
    feed: Feed, start_step: int, *, rank: int, world: int, num_actors: int, pin_memory: bool = False
) -> Iterator[dict]:
    """Batches of start_step, start_step + 1, ... of this rank in order, without end.

    Closing the iterator ends the actors.

    feed: what the batches hold; sent to the actors as file names and settings.
    start_step: step of the first batch.
    rank: place of this training worker, 0 to world - 1.
    world: number of training workers.
    num_actors: loading actors of this rank; each needs one CPU.
    pin_memory: whether tensors lie in page-locked memory.

    Raises UserError if Ray is not running. Raises RuntimeError if a batch kills every actor that prepares it.
    """
    if not ray.is_initialized():
        raise UserError(
            "train.loader=actors needs Ray, which is not running here; write train.loader=processes"
        )
    return _in_order(feed, start_step, rank, world, num_actors, pin_memory)


def _in_order(
    feed: Feed, start_step: int, rank: int, world: int, num_actors: int, pin_memory: bool
) -> Iterator[dict]:
    """The parameters are those of `actor_batches`."""
    # SPREAD also places actors outside a training worker's reserved resources, which have no room for them
    options = {
        "num_cpus": 1,
        "num_gpus": 0,
        "scheduling_strategy": "SPREAD",
        "max_restarts": -1,
        "max_task_retries": MAX_DEATHS - 1,
    }
    # in a list, so that Ray does not resolve the reference: each actor fetches the feed once
    stored = [ray.put(pickle.dumps(feed))]
    # the actors end when this generator ends
    actors = [_Preparer.options(**options).remote() for _ in range(num_actors)]
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
                f"step {step}, worker {rank}: every actor that prepared this batch died "
                f"({' '.join(str(error).split())[:300]}); "
                "usually their memory was full: make train.loader_workers smaller"
            ) from error
        asked.popleft()
        if isinstance(batch, UserError):
            raise batch
        yield {
            name: torch.tensor(values, pin_memory=pin_memory) if isinstance(values, np.ndarray) else values
            for name, values in batch.items()
        }


def _tell_if_waiting(actors: list) -> None:
    """Prints what the actors are waiting for, because Ray waits silently for CPUs that do not exist."""
    started, missing = ray.wait(
        [actor.__ray_ready__.remote() for actor in actors], num_returns=len(actors), timeout=WAIT_SECONDS
    )
    if missing:
        free, everywhere = (
            math.floor(found.get("CPU", 0)) for found in (ray.available_resources(), ray.cluster_resources())
        )
        print(
            f"train: {len(started)} of a worker's {len(actors)} loading actors have started after "
            f"{WAIT_SECONDS:g} s; each needs a CPU, and {free} of the cluster's {everywhere} are free: add "
            "nodes, make train.loader_workers smaller, or write train.loader=processes"
        )


@ray.remote
class _Preparer:
    """Prepares batches, one at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.feed: Feed | None = None

    def batch(self, stored: list[ray.ObjectRef], step: int, rank: int, world: int) -> dict | UserError:
        """The batch of `step`, with NumPy arrays in place of tensors.

        Arrays cross the object store without a copy. A UserError is returned as a value, because Ray would
        wrap one that is raised.

        stored: a list with the reference to the pickled feed.
        step: from 0.
        rank: place of the training worker, 0 to world - 1.
        world: number of training workers.
        """
        try:
            self.feed = self.feed or pickle.loads(ray.get(stored[0]))
            batch = self.feed.batch(step, rank=rank, world=world)
        except UserError as error:
            return error
        return {name: values.numpy() if torch.is_tensor(values) else values for name, values in batch.items()}
