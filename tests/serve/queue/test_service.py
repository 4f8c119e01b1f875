"""The service without network and Ray, around one real sampler.

Restarts, deletions, expiry, failures, and the limit of the queue.
"""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

from proav.errors import UserError
from proav.serve.front.api_error import ApiError
from proav.serve.on_ray.sampler import Sampler
from proav.serve.orders.references import read_given
from proav.serve.orders.requests import Order
from proav.serve.queue.dispatch import SamplerLost
from proav.serve.queue.jobs import Job, JobStore, new_id
from proav.serve.queue.service import UPLOADS, Service, lease_of
from proav.serve.settings import ServeSettings
from proav.storage.lease import LeaseHeld
from tests.media.hostile_files import h264
from tests.serve.queue.scenarios import Absent, Unreliable, finished, run, until


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint):
    return Sampler(tiny_checkpoint, device="cpu")


@pytest.fixture
def settings(tiny_checkpoint, tmp_path):
    return ServeSettings(
        checkpoint=tiny_checkpoint, jobs_dir=str(tmp_path / "jobs"), max_batch_size=3, max_queued_jobs=4
    )


def test_waiting_jobs_share_a_batch(settings, sampler):
    counted = Unreliable(sampler)

    async def scenario(service):
        jobs = [
            await service.create({"seed": seed, "label": "rain", "guidance_scale": seed}, None)
            for seed in range(3)
        ]
        await finished(*jobs)
        return [job.status for job in jobs]

    assert (
        run(Service(settings.model_copy(update={"batch_wait_seconds": 60.0}), counted), scenario)
        == ["completed"] * 3
    )
    assert counted.sizes == [3]


def test_a_later_server_finds_what_was_finished_and_makes_what_was_not(settings, sampler):
    async def first(service):
        done = await service.create({"seed": 1}, None)
        await finished(done)
        return (
            done.id,
            (await service.content(done.id, "video"))[0],
            [(await service.create({"seed": 1, "steps": 40}, None)).id for _ in range(2)],
        )

    done, mp4, cut_off = run(Service(settings, sampler), first)

    async def second(service):
        jobs = [service.get(job_id) for job_id in cut_off]
        await finished(*jobs)
        again = await service.create({"seed": 1}, None)
        await finished(again)
        return (
            (await service.content(done, "video"))[0],
            (await service.content(again.id, "video"))[0],
            [job.status for job in jobs],
        )

    kept, again, statuses = run(Service(settings, sampler), second)
    assert kept == mp4 == again and statuses == ["completed"] * 2


def test_an_unfinished_job_of_another_checkpoint_fails_with_a_reason(settings, sampler):
    order = Order(prompt="", label=None, task="joint", seed=0, steps=3, guidance_scale=1.0)
    JobStore(settings.jobs_dir).create(
        Job(
            id=new_id(),
            order=order,
            model="old",
            size="32x32",
            seconds="0.8",
            checkpoint="other",
            created=1.0,
        ),
        None,
    )

    async def scenario(service):
        (job,), more = service.page(limit=5, after=None, newest_first=True)
        return job.status, job.error.code, more

    assert run(Service(settings, sampler), scenario) == ("failed", "checkpoint_changed", False)


def test_deleting_a_running_job_stops_its_batch(settings, sampler, halt, monkeypatch):
    steps = halt.at_step(2, sampler, monkeypatch)
    monkeypatch.setattr(sampler, "_sign_seconds", 0.05)  # by the next sign of life the batch is given up

    async def scenario(service):
        job = await service.create({"steps": 4}, None)
        await until(lambda: job.progress == 50)
        await service.delete(job.id)
        await until(lambda: not service.dispatcher._running)
        halt.end()
        await finished(await service.create({"steps": 1}, None))
        with pytest.raises(ApiError) as error:
            service.get(job.id)
        return error.value.status, job.finished

    assert run(Service(settings, sampler), scenario) == (404, False)
    assert steps == [0, 1, 2, 0, 1]
    assert len(JobStore(settings.jobs_dir).load()) == 1


def test_a_job_deleted_at_any_moment_of_its_sending_holds_up_nobody(settings, sampler):
    async def scenario(service):
        for num_turns in range(12):  # turns of the event loop between acceptance and deletion
            job = await service.create({"steps": 2}, None)
            for _ in range(num_turns):
                await asyncio.sleep(0)
            await service.delete(job.id)
            await finished(await service.create({"steps": 2}, None))

    run(Service(settings.model_copy(update={"batch_wait_seconds": 0.0}), sampler), scenario)


def test_one_bad_job_takes_no_other_with_it(settings, sampler):
    """A batch that fails is tried job by job.

    So is a batch whose sampler is lost, three times at most.
    """
    unreliable = Unreliable(sampler, ValueError("this one"), ValueError("again"))

    async def scenario(service):
        jobs = [await service.create({"seed": seed}, None) for seed in range(3)]
        await finished(*jobs)
        return [job.status for job in jobs], jobs[0].error.message

    statuses, message = run(
        Service(settings.model_copy(update={"batch_wait_seconds": 60.0}), unreliable), scenario
    )
    assert (
        statuses == ["failed", "completed", "completed"]
        and message == "ValueError: again"
        and unreliable.sizes == [3, 1, 1, 1]
    )


def test_a_job_whose_fellow_was_deleted_is_tried_alone(settings, sampler):
    """The deleted one may have been the cause of the error."""

    class AfterDeletion(Unreliable):
        async def sample(self, requests):
            if len(self.sizes) == 0:
                self.sizes.append(len(requests))
                yield {"done": 0, "total": 1}
                await self.deleted.wait()
                raise ValueError("this batch")
            async for event in super().sample(requests):
                yield event

    unreliable = AfterDeletion(sampler)

    async def scenario(service):
        unreliable.deleted = asyncio.Event()
        jobs = [await service.create({"seed": seed}, None) for seed in range(2)]
        await until(lambda: jobs[0].status == "in_progress")
        await service.delete(jobs[0].id)
        unreliable.deleted.set()
        await finished(jobs[1])
        return jobs[1].status

    waiting = settings.model_copy(update={"batch_wait_seconds": 60.0, "max_batch_size": 2})
    assert run(Service(waiting, unreliable), scenario) == "completed" and unreliable.sizes == [2, 1]


def test_a_job_survives_lost_samplers_but_not_for_ever(settings, sampler):
    async def scenario(service):
        job = await service.create({}, None)
        await finished(job)
        return job.status, job.error.code if job.error else None

    assert run(Service(settings, Unreliable(sampler, *[SamplerLost("it died")] * 2)), scenario) == (
        "completed",
        None,
    )
    assert run(Service(settings, Unreliable(sampler, *[SamplerLost("it died")] * 3)), scenario) == (
        "failed",
        "sampler_lost",
    )


def test_a_full_queue_and_absent_samplers_are_reported(settings):
    patient = settings.model_copy(update={"health_seconds": 60.0})

    async def scenario(service):
        await service.create({}, None)
        await until(lambda: service.dispatcher._running)
        for _ in range(4):  # as many as may wait
            await service.create({}, None)
        refused = []
        for passed_seconds in (0.0, 61.0):
            service.dispatcher._running[0].sent -= passed_seconds
            with pytest.raises(ApiError) as error:
                await service.create({}, None)
            refused.append((error.value.status, error.value.retry_after_seconds > 0))
        return refused, await service.dispatcher.health()

    refused, (healthy, why) = run(Service(patient, Absent()), scenario)
    assert refused == [(429, True), (503, True)] and not healthy and "no sampler" in why


def test_a_full_queue_says_when_there_will_be_room(settings, sampler, halt, monkeypatch):
    """The estimate follows the batch that runs, not the short batches before it."""
    small = settings.model_copy(update={"max_queued_jobs": 1})
    halt.at_step(20, sampler, monkeypatch)

    async def scenario(service):
        for _ in range(3):
            await finished(await service.create({"steps": 1}, None))
        running = await service.create({"steps": 200}, None)
        await until(lambda: running.progress == 10)
        await service.create({"steps": 1}, None)
        (batch,) = service.dispatcher._running
        batch.sent -= 100.0  # a tenth has taken 100 s and a little, so the rest takes nine times as long
        least = 9 * (time.monotonic() - batch.sent)
        with pytest.raises(ApiError) as error:
            await service.create({"steps": 1}, None)
        return error.value, least, 9 * (time.monotonic() - batch.sent)

    error, least, most = run(Service(small, sampler), scenario)
    assert error.status == 429 and least <= error.retry_after_seconds <= most


def test_health_samples_a_step_where_there_is_no_newer_evidence(settings, sampler):
    async def scenario(service):
        return [await service.dispatcher.health() for _ in range(2)]

    (first, why), (second, why_now) = run(Service(settings, sampler), scenario)
    assert first and second and "sampled in" in why and "progress" in why_now
    assert run(Service(settings, Unreliable(sampler, SamplerLost("it died"))), scenario)[0] == (
        False,
        "it died",
    )


def test_previews_do_not_wait_for_uploads(settings, sampler, halt, monkeypatch):
    """As many uploads are being decoded as there are threads for them, and as many wait for a thread."""
    film = h264(num_frames=40)
    monkeypatch.setattr("proav.serve.queue.service.read_given", halt.before(read_given))

    async def scenario(service):
        job = await service.create({"steps": 1}, None)
        await finished(job)
        order = {"task": "v2a", "steps": 1}
        uploads = [asyncio.create_task(service.create(order, film)) for _ in range(2 * UPLOADS)]
        await until(lambda: len(halt.arrived) == UPLOADS)
        async with asyncio.timeout(30):
            data, _ = await service.content(job.id, "thumbnail")
        num_done = sum(upload.done() for upload in uploads)
        halt.end()
        await asyncio.gather(*uploads)
        return data[:2], num_done

    assert run(Service(settings, sampler), scenario) == (b"\xff\xd8", 0)


def test_a_given_stream_that_was_lost_is_reported(settings, sampler):
    order = Order(prompt="", label=None, task="a2v", seed=0, steps=3, guidance_scale=1.0)
    service = Service(settings, sampler)
    store = JobStore(settings.jobs_dir)
    jobs = [
        Job(
            id=new_id(),
            order=order,
            model="tiny",
            size="",
            seconds="",
            checkpoint=service.card.checkpoint_hash,
            created=float(number),
        )
        for number in range(2)
    ]
    store.create(jobs[0], None)
    store.create(jobs[1], {"audio": np.zeros(12_800, np.float32)})

    async def scenario(service):
        found = [service.get(job.id) for job in jobs]
        await finished(*found)
        return [job.status for job in found]

    assert run(service, scenario) == ["failed", "completed"]


def test_a_page_goes_on_where_it_was_though_jobs_are_deleted(settings):
    """A client that empties the list page by page deletes its own cursor. Expiry may delete it too."""
    roomy = settings.model_copy(update={"max_queued_jobs": 20})

    async def make(service):
        return [(await service.create({}, None)).id for _ in range(7)]

    ids = run(Service(roomy, Absent()), make)

    async def delete_while_paging(service, newest_first, limit):
        seen, after, more = [], None, True
        while more:
            jobs, more = service.page(limit=limit, after=after, newest_first=newest_first)
            seen += [job.id for job in jobs]
            after = jobs[-1].id
            for job in jobs:
                await service.delete(job.id)
        return seen, service.page(limit=5, after=after, newest_first=newest_first)

    async def scenario(service):
        first, more = service.page(limit=2, after=None, newest_first=False)
        await service.delete(ids[1])
        return [job.id for job in first], more

    assert run(Service(roomy, Absent()), scenario) == (ids[:2], True)

    async def later(service):
        rest = [job.id for job in service.page(limit=5, after=ids[1], newest_first=False)[0]]
        before = [job.id for job in service.page(limit=5, after=ids[1], newest_first=True)[0]]
        with pytest.raises(ApiError, match="no id of a video"):
            service.page(limit=5, after="video_x", newest_first=True)
        return rest, before, await delete_while_paging(service, newest_first=True, limit=4)

    rest, before, (seen, end) = run(Service(roomy, Absent()), later)
    assert rest == ids[2:] and before == ids[:1]
    assert seen == [*ids[:1:-1], ids[0]] and end == ([], False)


def test_a_server_starts_over_damaged_records_and_deletes_only_its_own(settings, sampler):
    """If a record names another folder, that folder must never be deleted."""

    async def make(service):
        jobs = [await service.create({"steps": 1}, None) for _ in range(2)]
        await finished(*jobs)
        return [job.id for job in jobs]

    kept, damaged = run(Service(settings, sampler), make)
    folder = Path(settings.jobs_dir)
    record = json.loads((folder / damaged / "job.json").read_text())
    (folder / damaged / "job.json").write_text(json.dumps({**record, "id": kept, "expires": 1.0}))
    (folder / "video_brackets").mkdir()
    (folder / "video_brackets" / "job.json").write_text("[" * 10_000)

    async def look(service):
        await asyncio.sleep(0.2)  # the first look for expired jobs
        listed = [job.id for job in service.page(limit=5, after=None, newest_first=True)[0]]
        made = await service.create({"steps": 1}, None)
        await finished(made)
        await service.delete(made.id)
        return listed

    assert run(Service(settings, sampler), look) == [kept]
    assert sorted(path.name for path in folder.iterdir()) == sorted([kept, damaged, "video_brackets"])
    assert (folder / kept / "video.mp4").exists() and (folder / damaged / "video.mp4").exists()


def test_a_second_server_on_one_folder_is_refused_until_the_first_ends(settings, sampler):
    quick = settings.model_copy(update={"lease_seconds": 0.6})

    async def first(service):
        with pytest.raises(LeaseHeld, match="jobs is in use by another server .process .*jobs_dir=DIR"):
            await Service(quick, sampler).start()
        job = await service.create({"steps": 200}, None)
        assert not job.finished and (await service.health())[0]
        return job.id

    job_id = run(Service(settings, sampler), first)

    async def second(service):
        await finished(service.get(job_id))

    run(Service(settings, sampler), second)
    assert not [path for path in Path(settings.jobs_dir).iterdir() if "lease" in path.name]


def test_a_server_that_lost_its_folder_stops_and_says_so(settings, sampler, halt, monkeypatch):
    quick = settings.model_copy(update={"lease_seconds": 0.6})
    lease, counted = lease_of(quick), Unreliable(sampler)
    steps = halt.at_step(2, sampler, monkeypatch)

    async def scenario(service):
        running = await service.create({"steps": 4}, None)
        await until(lambda: running.progress == 50)
        deadline = time.monotonic() + 30
        while (await service.health())[0]:
            assert time.monotonic() < deadline
            lease._write()  # as another server does if it believes that this one has ended
            await asyncio.sleep(0.05)
        with pytest.raises(ApiError, match="another server") as refused:
            await service.create({}, None)
        with pytest.raises(UserError, match="taken over by another server"):
            service.require_lease()
        await until(lambda: all(task.done() for task in service._tasks))
        halt.end()
        await sampler.probe()  # waits for its thread
        return refused.value.status, running.finished

    assert run(Service(quick, counted), scenario) == (503, False) and counted.sizes == [1]
    assert steps == [0, 1, 2]
    assert Path(lease.path).exists()
