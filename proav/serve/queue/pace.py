"""Estimates how long batches take, from those that have ended.

The server uses it to tell clients when to ask again (`dispatch.py`). Pure: the caller gives the times.
"""

SMOOTHING = 0.3
"""Weight of the newest batch in a mean."""
UNKNOWN_STEP_SECONDS = 0.1
"""Assumed seconds of a denoising step of one job, until a first batch has ended."""


class Pace:
    """Seconds of a denoising step, with its share of the decoding, for each number of jobs in a batch."""

    def __init__(self) -> None:
        self._step_seconds: dict[int, float] = {}

    def learn(self, *, steps: int, num_jobs: int, seconds: float) -> None:
        """Takes in a batch that has ended after `seconds`."""
        newest = seconds / steps
        before = self._step_seconds.get(num_jobs, newest)
        self._step_seconds[num_jobs] = (1 - SMOOTHING) * before + SMOOTHING * newest

    def expect(self, *, steps: int, num_jobs: int) -> float:
        """Seconds of a whole batch.

        A batch of unknown size takes as long as one of the nearest known size, or longer if it is larger.
        """
        if not self._step_seconds:
            return steps * num_jobs * UNKNOWN_STEP_SECONDS
        known = min(self._step_seconds, key=lambda size: (abs(size - num_jobs), size))
        return steps * self._step_seconds[known] * max(1.0, num_jobs / known)

    def rest(self, *, steps: int, num_jobs: int, done: float, elapsed_seconds: float) -> float:
        """Seconds until a running batch ends.

        steps: of the whole batch.
        num_jobs: jobs in the batch.
        done: steps that it has made. If there are any, only its own pace counts.
        elapsed_seconds: time since it began.
        """
        whole = elapsed_seconds * steps / done if done else self.expect(steps=steps, num_jobs=num_jobs)
        return max(0.0, whole - elapsed_seconds)
