"""Which waiting jobs are sampled together, and when.

The oldest job decides: its batch takes the oldest jobs that have its task, its number of windows and its
number of calls of the model. So all of them end together. Their seeds, labels, solvers and guidance may
differ. An idle sampler waits only `wait_seconds` for more jobs. Under load, batches fill by themselves while
the sampler is busy. Pure: the caller gives the times, and nothing waits here. Not here: how batches are sent
(`dispatch.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from proav.serve.queue.jobs import Job


@dataclass(eq=False)
class Waiting:
    """A job in the queue."""

    job: Job
    given: dict[str, np.ndarray] | None = None
    """The streams that the task is given, "video" and "audio", at the model's rates."""
    since: float = 0.0
    """When it began to wait, in seconds of a monotonic clock."""
    attempts: int = 0
    """How many batches with this job were lost."""
    alone: bool = False
    """Whether it must not share a batch. It is set if a batch with this job failed or was lost, since this
    job may be the cause.
    """

    @property
    def key(self) -> tuple[str, int, int]:
        """What the jobs of a batch have in common."""
        order = self.job.order
        return order.task, order.num_calls, order.num_windows


class JobQueue:
    """Waiting jobs, oldest first."""

    def __init__(self, *, max_batch_size: int, wait_seconds: float) -> None:
        self.max_batch_size, self.wait_seconds = max_batch_size, wait_seconds
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting)

    def put(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)

    def put_back(self, returned: list[Waiting]) -> None:
        """Puts the jobs of a batch that was lost or failed to the front again, in their old order."""
        self._waiting[:0] = returned

    def remove(self, job_id: str) -> bool:
        """Takes a job out of the queue; False if it does not wait."""
        before = len(self._waiting)
        self._waiting = [waiting for waiting in self._waiting if waiting.job.id != job_id]
        return len(self._waiting) < before

    def position(self, job_id: str) -> int | None:
        """Number of jobs before this one; None if it does not wait."""
        return next((index for index, waiting in enumerate(self._waiting) if waiting.job.id == job_id), None)

    def delay(self, now: float) -> float | None:
        """Seconds until a batch should start, 0 for at once; None if nothing waits."""
        batch = self._next_batch()
        if not batch:
            return None
        if batch[0].alone or len(batch) == self.max_batch_size:
            return 0.0
        return max(0.0, batch[0].since + self.wait_seconds - now)

    def take(self) -> list[Waiting]:
        """Removes and returns the next batch; empty if nothing waits."""
        batch = self._next_batch()
        self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
        return batch

    def _next_batch(self) -> list[Waiting]:
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        if oldest.alone:
            return [oldest]
        return [waiting for waiting in self._waiting if waiting.key == oldest.key and not waiting.alone][
            : self.max_batch_size
        ]
