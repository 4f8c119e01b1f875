"""Estimates how long batches take, from those that have ended.

The server uses it to tell clients when to ask again (`dispatch.py`). Pure: the caller gives the times.
"""

SMOOTHING = 0.3
"""Weight of the newest batch in a mean."""
UNKNOWN_CALL_SECONDS = 0.1
"""Assumed seconds of a call of the model for one job, until a first batch has ended."""


class Pace:
    """Seconds of a call of the model, with its share of the decoding, for each number of jobs in a batch."""

    def __init__(self) -> None:
        self._call_seconds: dict[int, float] = {}

    def learn(self, *, num_calls: int, num_jobs: int, seconds: float) -> None:
        """Takes in a batch that has ended after `seconds`."""
        newest = seconds / num_calls
        before = self._call_seconds.get(num_jobs, newest)
        self._call_seconds[num_jobs] = (1 - SMOOTHING) * before + SMOOTHING * newest

    def expect(self, *, num_calls: int, num_jobs: int) -> float:
        """Seconds of a whole batch.

        A batch of unknown size takes as long as one of the nearest known size, or longer if it is larger.
        """
        if not self._call_seconds:
            return num_calls * num_jobs * UNKNOWN_CALL_SECONDS
        known = min(self._call_seconds, key=lambda size: (abs(size - num_jobs), size))
        return num_calls * self._call_seconds[known] * max(1.0, num_jobs / known)

    def rest(self, *, num_calls: int, num_jobs: int, done: float, elapsed_seconds: float) -> float:
        """Seconds until a running batch ends.

        num_calls: calls of the model for the whole batch.
        num_jobs: jobs in the batch.
        done: those that it has made. If there are any, only its own pace counts.
        elapsed_seconds: time since it began.
        """
        expected = self.expect(num_calls=num_calls, num_jobs=num_jobs)
        whole = elapsed_seconds * num_calls / done if done else expected
        return max(0.0, whole - elapsed_seconds)
