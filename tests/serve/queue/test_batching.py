"""What is sampled together, and when. The policy is pure: it is given the time."""

from proav.serve.orders.requests import Order
from proav.serve.queue.batching import JobQueue, Waiting
from proav.serve.queue.jobs import Job


def waiting(name, *, since=0.0, alone=False, **order):
    order = {"task": "joint", "seed": 0, "steps": 30, "solver": "euler", **order}
    order = Order(prompt="", label=None, guidance_scale=1.0, **order)
    job = Job(id=name, order=order, model="tiny", size="32x32", seconds="0.8", checkpoint="", created=since)
    return Waiting(job, since=since, alone=alone)


def queue_of(*members, max_batch_size=3, wait_seconds=0.5):
    queue = JobQueue(max_batch_size=max_batch_size, wait_seconds=wait_seconds)
    for member in members:
        queue.put(member)
    return queue


def names(batch):
    return [member.job.id for member in batch]


def test_an_empty_queue_has_nothing_to_wait_for():
    assert queue_of().delay(0.0) is None and queue_of().take() == []


def test_the_oldest_decides_and_others_of_its_kind_come_along():
    queue = queue_of(waiting("a"), waiting("b", steps=10), waiting("c", seed=7), waiting("d", task="a2v"))
    assert [names(queue.take()) for _ in range(4)] == [["a", "c"], ["b"], ["d"], []]
    longer = {"task": "continue", "num_windows": 5}
    queue = queue_of(waiting("a", task="continue"), waiting("b", **longer), waiting("c", **longer))
    assert [names(queue.take()) for _ in range(3)] == [["a"], ["b", "c"], []]


def test_jobs_with_as_many_calls_of_the_model_share_a_batch():
    calls = {"steps": 15, "solver": "heun"}  # 29
    queue = queue_of(waiting("a", steps=29), waiting("b", **calls), waiting("c", steps=15))
    assert [names(queue.take()) for _ in range(2)] == [["a", "b"], ["c"]]
    queue = queue_of(waiting("a", schedule_shift=3.0), waiting("b", guidance_interval=(0.1, 0.8)))
    assert names(queue.take()) == ["a", "b"]


def test_a_batch_is_never_larger_than_allowed_and_keeps_the_order():
    queue = queue_of(*(waiting(name) for name in "abcd"))
    assert names(queue.take()) == ["a", "b", "c"] and names(queue.take()) == ["d"]


def test_a_lone_job_waits_for_company_only_so_long():
    queue = queue_of(waiting("a", since=10.0))
    assert queue.delay(10.0) == 0.5 and queue.delay(10.4) < 0.11 and queue.delay(11.0) == 0.0


def test_a_full_batch_does_not_wait():
    assert queue_of(*(waiting(name, since=10.0) for name in "abc")).delay(10.0) == 0.0


def test_a_job_that_is_to_be_alone_is():
    queue = queue_of(
        waiting("a", alone=True, since=10.0), waiting("b"), waiting("c", alone=True), waiting("d")
    )
    assert queue.delay(10.0) == 0.0
    assert [names(queue.take()) for _ in range(3)] == [["a"], ["b", "d"], ["c"]]


def test_returned_jobs_go_first_in_their_order():
    queue = queue_of(waiting("a"), waiting("b"), waiting("c", steps=5))
    batch = queue.take()
    queue.put(waiting("d"))
    queue.put_back(batch)
    assert names(queue) == ["a", "b", "c", "d"]


def test_positions_follow_removals():
    queue = queue_of(waiting("a"), waiting("b", steps=5), waiting("c"))
    assert [queue.position(name) for name in "abcd"] == [0, 1, 2, None]
    assert queue.remove("b") and not queue.remove("b")
    assert queue.position("c") == 1
