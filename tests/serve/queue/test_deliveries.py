"""Clips that were made and cannot be delivered: nothing is made again, and no other job is touched."""

import asyncio
import threading

import pytest

from proav.serve.on_ray.sampler import Sampler
from proav.serve.orders.requests import Order
from proav.serve.queue.batching import Waiting
from proav.serve.queue.dispatch import Dispatcher
from proav.serve.queue.jobs import Job, new_id
from proav.serve.queue.service import Service
from proav.serve.settings import ServeSettings
from tests.serve.queue.scenarios import Unreliable, finished, run, until
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint):
    return Sampler(tiny_checkpoint, device="cpu")


@pytest.fixture
def settings(tiny_checkpoint, tmp_path):
    jobs = str(tmp_path / "jobs")
    return ServeSettings(checkpoint=tiny_checkpoint, jobs_dir=jobs, max_batch_size=3)


class Instant:
    """A sampler whose clips are there at once. After them it raises `trouble`, if there is any."""

    def __init__(self, trouble=None):
        self.trouble, self.sizes = trouble, []
        self.go_on = asyncio.Event()

    async def sample(self, requests):
        self.sizes.append(len(requests))
        yield {"done": 0, "total": 1}
        if self.trouble:
            await self.go_on.wait()
            raise self.trouble
        yield {"clips": [b"mp4"] * len(requests)}


def waiting_job(seed):
    sampling = {"solver": "euler", "schedule_shift": 1.0, "guidance_interval": (0.0, 1.0)}
    order = Order(prompt="", label=None, task="joint", seed=seed, steps=3, guidance_scale=1.0, **sampling)
    job = Job(id=new_id(), order=order, model="", size="", seconds="", checkpoint="", created=1.0)
    return Waiting(job)


def dispatch(settings, samplers, jobs, deliver, meanwhile=None):
    """Sends the jobs, and ends when no batch runs and none waits.

    settings: of the server.
    samplers: makes the batches.
    jobs: what waits.
    deliver: as in `Dispatcher`.
    meanwhile: is called with the dispatcher when the first batch has begun.
    """

    async def all_of_it():
        dispatcher = Dispatcher(samplers, tiny_config(), settings, deliver=deliver)
        for job in jobs:
            dispatcher.submit(job)
        work = asyncio.create_task(dispatcher.run())
        async with asyncio.timeout(30):
            while not samplers.sizes:
                await asyncio.sleep(0.01)
            if meanwhile:
                await asyncio.sleep(0.1)
                meanwhile(dispatcher)
            while dispatcher._running or len(dispatcher.queue):
                await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(all_of_it())


def test_a_clip_that_cannot_be_delivered_takes_no_other_with_it(settings, caplog):
    jobs, told = [waiting_job(seed) for seed in range(3)], []

    async def deliver(job, mp4, error):
        told.append(job.order.seed)
        if job.order.seed == 1:
            raise ValueError("a defect")
        job.finish(2.0, 60.0, error)

    samplers = Instant()
    dispatch(settings, samplers, jobs, deliver)
    assert samplers.sizes == [3] and sorted(told) == [0, 1, 2]
    assert [job.job.status for job in jobs] == ["completed", "in_progress", "completed"]
    assert jobs[1].job.id in caplog.text and "a defect" in caplog.text


def test_a_batch_may_fail_after_its_only_job_was_cancelled(settings, caplog):
    (job,), told = [waiting_job(0)], []

    async def deliver(job, mp4, error):
        told.append(job)

    samplers = Instant(ValueError("of sampling"))

    def cancel(dispatcher):
        dispatcher.cancel(job.job.id)
        samplers.go_on.set()

    dispatch(settings, samplers, [job], deliver, cancel)
    assert not told and "of sampling" in caplog.text and "a defect" not in caplog.text


def test_a_deleted_job_whose_files_stay_is_no_failure_of_its_batch(settings, sampler, caplog):
    """One of three is deleted while its clip is written, and the clip cannot be removed."""
    counted = Unreliable(sampler)
    service = Service(settings.model_copy(update={"batch_wait_seconds": 60.0}), counted)
    store, written, deleted, doomed = service._store, threading.Event(), threading.Event(), []
    save_video, delete = store.save_video, store.delete

    def save_slowly(job_id, mp4):
        save_video(job_id, mp4)
        if job_id in doomed:
            written.set()
            assert deleted.wait(30)

    def delete_once(job_id):
        if deleted.is_set():
            raise OSError("the disk is gone")
        delete(job_id)

    store.save_video, store.delete = save_slowly, delete_once

    async def scenario(service):
        jobs = [await service.create({"seed": seed, "steps": 1}, None) for seed in range(3)]
        doomed.append(jobs[1].id)
        await asyncio.to_thread(written.wait, 30)
        await service.delete(jobs[1].id)
        deleted.set()
        await finished(*jobs)
        await until(lambda: not service.dispatcher._running)
        return [job.status for job in jobs]

    assert run(service, scenario) == ["completed"] * 3 and counted.sizes == [3]
    assert "which was deleted, stay: the disk is gone" in caplog.text and "Traceback" not in caplog.text
