"""Jobs expire and are deleted, whatever clients and storage do meanwhile."""

import asyncio
import threading
import time

import pytest

from proav.errors import StorageUnavailable
from proav.serve.front.api_error import ApiError
from proav.serve.on_ray.sampler import Sampler
from proav.serve.queue.jobs import JobStore
from proav.serve.queue.service import Service
from proav.serve.settings import ServeSettings
from tests.serve.queue.scenarios import Stuck, finished, run, until


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint):
    return Sampler(tiny_checkpoint, device="cpu")


@pytest.fixture
def settings(tiny_checkpoint, tmp_path):
    return ServeSettings(checkpoint=tiny_checkpoint, jobs_dir=str(tmp_path / "jobs"))


def test_jobs_expire(settings, sampler):
    async def make(service):
        await finished(await service.create({}, None))

    run(Service(settings.model_copy(update={"keep_seconds": 0.01}), sampler), make)
    time.sleep(0.02)

    async def look(service):
        await asyncio.sleep(0.2)
        return service.page(limit=5, after=None, newest_first=True)

    assert run(Service(settings, sampler), look) == ([], False)
    assert JobStore(settings.jobs_dir).load() == []


def test_the_search_for_expired_jobs_survives_a_client_that_deletes_one_of_them(
    settings, sampler, monkeypatch
):
    monkeypatch.setattr("proav.serve.queue.service.SWEEP_SECONDS", 0.05)
    service = Service(settings, sampler)
    deleted, go_on, remove = [], threading.Event(), service._store.delete

    def delete(job_id):
        deleted.append(job_id)
        if len(deleted) == 1:
            go_on.wait(30)
        remove(job_id)

    service._store.delete = delete

    async def scenario(service):
        jobs = [await service.create({"steps": 1}, None) for _ in range(3)]
        for job in jobs:
            await finished(job)
        for job in jobs:
            job.expires = 0.0
        await until(lambda: deleted)
        await service.delete(jobs[1].id)  # the search goes through all three, and is held up by the first
        go_on.set()
        await until(lambda: not service._jobs)
        return jobs

    jobs = run(service, scenario)
    assert sorted(deleted) == sorted(job.id for job in jobs)


def test_an_unfinished_job_whose_deletion_fails_ends(settings, sampler):
    service = Service(settings, Stuck(sampler))
    remove = service._store.delete

    def fails(job_id):
        raise StorageUnavailable("delete failed")

    async def scenario(service):
        job = await service.create({}, None)
        service._store.delete = fails
        with pytest.raises(ApiError) as refused:
            await service.delete(job.id)
        assert refused.value.status == 503 and service.get(job.id) is job
        assert (job.status, job.error.code) == ("failed", "cancelled") and job.expires is not None
        service._store.delete = remove
        await service.delete(job.id)

    run(service, scenario)
    assert JobStore(settings.jobs_dir).load() == []


def test_jobs_end_and_expiry_goes_on_if_storage_fails_for_long(settings, sampler, monkeypatch):
    """A disk fails for longer than the retries last. Jobs end with an error, and the expiry goes on."""
    monkeypatch.setattr("proav.serve.queue.service.SWEEP_SECONDS", 0.05)
    service = Service(settings, sampler)
    store, failing, failed = service._store, set(), []

    def may_fail(name, act):
        def acted(*words):
            if name in failing:
                failed.append(name)
                raise StorageUnavailable(f"{name} failed")
            return act(*words)

        return acted

    for name in ("create", "save_video", "read_video", "delete"):
        setattr(store, name, may_fail(name, getattr(store, name)))

    async def scenario(service):
        failing.add("save_video")
        lost = await service.create({"steps": 1}, None)
        await finished(lost)
        assert lost.status == "failed" and lost.error.code == "storage_failed"
        failing.add("create")
        with pytest.raises(ApiError) as refused:
            await service.create({"steps": 1}, None)
        assert refused.value.status == 503 and refused.value.code == "storage_failed"
        failing.clear()
        failing.add("delete")
        kept = await service.create({"steps": 1}, None)
        await finished(kept)
        with pytest.raises(ApiError) as refused:
            await service.delete(kept.id)
        assert refused.value.status == 503 and service.get(kept.id) is kept
        kept.expires = 0.0
        await until(lambda: failed.count("delete") >= 4)  # three searches could not delete it
        await until(lambda: service._jobs.get(kept.id) is kept)
        failing.clear()
        await until(lambda: kept.id not in service._jobs)

    run(service, scenario)
