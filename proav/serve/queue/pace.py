"""How long batches take, learnt from those that ended: for what a full queue tells clients.

Pure: times are given.
"""

SMOOTHING = 0.3
"""Weight of the newest batch in a mean."""
UNKNOWN_STEP_SECONDS = 0.1
"""A denoising step of one job, before any batch has ended."""


class Pace:
    """Seconds that a denoising step takes, with its share of the decoding, by the jobs in the batch."""

    def __init__(self) -> None:
        self._step_seconds: dict[int, float] = {}

    def learn(self, *, steps: int, num_jobs: int, seconds: float) -> None:
        """A batch has ended."""
        newest = seconds / steps
        before = self._step_seconds.get(num_jobs, newest)
        self._step_seconds[num_jobs] = (1 - SMOOTHING) * before + SMOOTHING * newest

    def expect(self, *, steps: int, num_jobs: int) -> float:
        """Seconds of a whole batch.

        One of an unknown size takes as long as the nearest known one, or longer if it is larger.
        """
        if not self._step_seconds:
            return steps * num_jobs * UNKNOWN_STEP_SECONDS
        known = min(self._step_seconds, key=lambda size: (abs(size - num_jobs), size))
        return steps * self._step_seconds[known] * max(1.0, num_jobs / known)

    def rest(self, *, steps: int, num_jobs: int, done: int, elapsed_seconds: float) -> float:
        """Seconds until a batch ends that has made `done` steps.

        Its own pace tells more than that of others.
        """
        whole = elapsed_seconds * steps / done if done else self.expect(steps=steps, num_jobs=num_jobs)
        return max(0.0, whole - elapsed_seconds)
