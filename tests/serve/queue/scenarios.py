"""A service without network and Ray runs a test's scenario, with samplers that fail in known ways."""

import asyncio
import time

from proav.serve.queue.service import Service


class Unreliable:
    """A sampler that raises given errors first.

    troubles: the errors that its first batches raise, in order.
    sizes: how many requests each batch had.
    """

    def __init__(self, sampler, *troubles):
        self.sampler, self.troubles, self.sizes = sampler, list(troubles), []

    async def sample(self, requests):
        self.sizes.append(len(requests))
        yield {"done": 0, "total": requests[0].settings.steps}
        if self.troubles:
            raise self.troubles.pop(0)
        async for event in self.sampler.sample(requests):
            yield event

    async def probe(self):
        if self.troubles:
            raise self.troubles.pop(0)
        return await self.sampler.probe()


class Stuck(Unreliable):
    """A sampler that begins a batch and makes no progress with it."""

    async def sample(self, requests):
        yield {"done": 0, "total": 1}
        await asyncio.Event().wait()


class Absent:
    """No sampler is there, so a batch waits for ever."""

    async def sample(self, requests):
        await asyncio.Event().wait()
        yield {}

    async def probe(self):
        await asyncio.Event().wait()


def run(service, scenario):
    """Starts the service, runs the scenario, stops it."""

    async def all_of_it():
        await service.start()
        try:
            return await scenario(service)
        finally:
            await service.stop()

    return asyncio.run(all_of_it())


async def until(happened, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def finished(*jobs, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not all(job.finished for job in jobs):
        assert time.monotonic() < deadline, [job.status for job in jobs]
        await asyncio.sleep(0.01)


def after_a_restart(settings, sampler, orders):
    """[(seconds, mp4)] of orders that one server takes and begins, and that the next one makes.

    settings: of both servers.
    sampler: of the second one.
    orders: for each job the fields of its request, and its upload or None.
    """

    async def send(service):
        return [(await service.create(fields, upload)).id for fields, upload in orders]

    async def fetch(service):
        jobs = [service.get(identity) for identity in identities]
        await finished(*jobs)
        return [(job.seconds, (await service.content(job.id, "video"))[0]) for job in jobs]

    identities = run(Service(settings, Stuck(sampler)), send)
    return run(Service(settings, sampler), fetch)
