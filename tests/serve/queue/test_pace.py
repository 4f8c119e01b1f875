"""Estimates of how long batches take.

Calls of the model and jobs count, and a batch's own pace counts most.
"""

import pytest

from proav.serve.queue.pace import Pace


def test_more_calls_and_more_jobs_take_longer():
    pace = Pace()
    assert pace.expect(num_calls=200, num_jobs=1) > pace.expect(num_calls=20, num_jobs=1) > 0
    pace.learn(num_calls=10, num_jobs=2, seconds=5.0)
    assert pace.expect(num_calls=100, num_jobs=2) == pytest.approx(50.0)
    assert pace.expect(num_calls=100, num_jobs=8) == pytest.approx(200.0)  # as on a full device
    assert pace.expect(num_calls=100, num_jobs=1) == pytest.approx(50.0)
    pace.learn(num_calls=10, num_jobs=8, seconds=10.0)
    assert pace.expect(num_calls=100, num_jobs=8) == pytest.approx(100.0)


def test_a_running_batch_is_judged_by_its_own_pace():
    pace = Pace()
    pace.learn(num_calls=10, num_jobs=1, seconds=1.0)
    assert pace.rest(num_calls=100, num_jobs=1, done=0, elapsed_seconds=0.0) == pytest.approx(10.0)
    assert pace.rest(num_calls=100, num_jobs=1, done=50, elapsed_seconds=60.0) == pytest.approx(60.0)
    assert pace.rest(num_calls=100, num_jobs=1, done=100, elapsed_seconds=60.0) == 0.0
