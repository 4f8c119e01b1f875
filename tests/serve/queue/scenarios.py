"""A service without network and Ray runs a test's scenario, with samplers that fail in known ways.

What a test must see half done waits there, so that no test has to be quicker than a sampler.
"""

import asyncio
import threading
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


class Halt:
    """Where calls in threads wait until it is ended, at the latest at the end of its block.

    arrived: the names of the functions that have come here.
    """

    def __init__(self):
        self.arrived, self._ended = [], threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self._ended.set()

    def wait(self, name):
        self.arrived.append(name)
        assert self._ended.wait(90), f"{name} waited for too long"  # longer than `until` waits

    def before(self, act):
        """A function that waits here, and then does what `act` does."""

        def halted(*words, **named):
            self.wait(act.__name__)
            return act(*words, **named)

        return halted

    def at_step(self, step, sampler, monkeypatch):
        """Lets all batches of a sampler wait here when they have made this step.

        Returns a list that gets every step that they make.
        """
        sample_batch, steps = sampler._sample_batch, []

        def halted(requests, total, tell):
            def told(done, total):
                tell(done, total)
                steps.append(done)
                if done == step:
                    self.wait("sample")

            return sample_batch(requests, total, told)

        monkeypatch.setattr(sampler, "_sample_batch", halted)
        return steps


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
