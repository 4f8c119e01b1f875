"""One job at a time takes its CPUs in a cluster: for its training workers, then for their loading actors.

If two jobs each hold some CPUs and wait for the rest, they would wait for ever: neither gives back what it
has. When a job has all its CPUs, it passes the turn to the next. Jobs without loading actors hold nothing
while they wait, so they need no turn.
"""

import contextlib
import time
from collections.abc import Iterator

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorAlreadyExistsError

from proav.stopping import StopRequest

NAME, NAMESPACE = "proav starts training", "proav"
POLL_SECONDS = 0.5


@contextlib.contextmanager
def turn_to_start() -> Iterator[ActorHandle]:
    """Waits until no other job of the cluster is starting.

    The turn ends if the yielded actor is killed, and at the end of the block or of this process. Raises
    Stopped.
    """
    turn, is_told = None, False
    while turn is None:
        StopRequest.check()
        try:
            turn = _Turn.options(name=NAME, namespace=NAMESPACE).remote()
        except ActorAlreadyExistsError:
            if not is_told:
                print("train: another job with loading actors is taking its CPUs; waiting until it has them")
            is_told = True
            time.sleep(POLL_SECONDS)
    try:
        yield turn
    finally:
        ray.kill(turn)


@ray.remote(num_cpus=0)
class _Turn:
    """An actor with a fixed name, held by one job at a time; the name is free once the actor is gone."""
