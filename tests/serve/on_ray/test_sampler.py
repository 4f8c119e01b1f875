"""The sampler alone: batches equal solo runs, and its event loop stays free.

A batch that is given up stops, and a sampler that is stuck says so.
"""

import asyncio
import io
import time
from dataclasses import replace

import numpy as np
import pytest

from proav.generation.pipeline import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import read_clip
from proav.serve.on_ray.sampler import Sampler

REQUESTS = [
    SampleRequest(seed, 0, label, settings=SamplingSettings(guidance_scale=scale))
    for seed, label, scale in ((3, "rain", 2.0), (4, None, 1.0), (5, "speech", 0.5))
]


def in_steps(requests, steps):
    return [replace(one, settings=replace(one.settings, steps=steps)) for one in requests]


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint):
    return Sampler(tiny_checkpoint, device="cpu", threads=2, stall_seconds=5.0, sign_seconds=60.0)


async def answer_of(sampler, requests, steps=3):
    events = [event async for event in sampler.sample(in_steps(requests, steps))]
    return events[:-1], events[-1]["clips"]


def frames(mp4):
    return read_clip(io.BytesIO(mp4), fps=5, sample_rate=16_000, height=32, width=32).video.astype(int)


def test_a_batch_equals_its_solo_runs_and_reports_its_progress(sampler):
    told, together = asyncio.run(answer_of(sampler, REQUESTS))
    assert [event["done"] for event in told] == [0, 0, 1, 2, 3] and {event["total"] for event in told} == {3}
    for mp4, request in zip(together, REQUESTS, strict=True):
        (alone,) = asyncio.run(answer_of(sampler, [request]))[1]
        assert np.abs(frames(mp4) - frames(alone)).mean() < 1
    assert np.abs(frames(together[0]) - frames(together[1])).mean() > 1


def test_progress_counts_the_windows_of_all_parts(masked_checkpoint):
    """Each of two threads makes a clip of three windows."""
    sampler = Sampler(masked_checkpoint, device="cpu", threads=2)
    long = [replace(request, num_windows=3, num_frames=7) for request in REQUESTS[:2]]
    told, clips = asyncio.run(answer_of(sampler, long, steps=2))
    done = [event["done"] for event in told]
    assert done == sorted(done) and done[-1] == 6 and {event["total"] for event in told} == {6}
    assert [len(frames(mp4)) for mp4 in clips] == [7, 7]


def test_the_event_loop_stays_free_while_sampling(sampler):
    async def turns_of_the_loop():
        work, turns = asyncio.create_task(answer_of(sampler, REQUESTS * 2, steps=400)), 0
        while not work.done():
            await asyncio.sleep(0.005)
            turns += 1
        return turns

    # a loop that waits for the sampler turns once, a free one hundreds of times
    assert asyncio.run(turns_of_the_loop()) >= 5


def test_a_batch_that_is_given_up_stops_before_its_end(sampler, halt, monkeypatch):
    """The sampling waits in its second step until the batch is given up."""
    made = halt.at_step(2, sampler, monkeypatch)

    async def give_up():
        stream = sampler.sample(in_steps(REQUESTS, 1000))
        async for event in stream:
            if event["done"] >= 2:
                break
        await stream.aclose()
        halt.end()
        await sampler.probe()  # waits for the thread

    asyncio.run(give_up())
    assert 2 in made and max(made) <= 3


def test_a_batch_in_a_long_step_gives_signs_of_life(sampler, halt, monkeypatch):
    halt.at_step(1, sampler, monkeypatch)
    monkeypatch.setattr(sampler, "_sign_seconds", 0.05)

    async def signs():
        told = []
        async with asyncio.timeout(60):
            async for event in sampler.sample(in_steps(REQUESTS, 2)):
                told.append(event.get("done"))
                if told.count(1) == 4:
                    halt.end()
        return told

    assert set(asyncio.run(signs())) == {0, 1, 2, None}  # None: its clips


def test_a_mistake_in_sampling_reaches_the_caller(sampler):
    with pytest.raises(Exception, match="thunder"):
        asyncio.run(answer_of(sampler, [SampleRequest(0, 0, "thunder")]))
    with pytest.raises(Exception, match="thunder"):  # the other request of the batch ends with it
        asyncio.run(answer_of(sampler, [REQUESTS[0], SampleRequest(0, 0, "thunder")], steps=1000))


def test_health_is_a_sampled_step_when_idle_and_progress_when_busy(sampler):
    async def check():
        sampler._progress_at = time.monotonic() - 1000
        await sampler.check_health()
        assert time.monotonic() - sampler._progress_at < 60  # it sampled
        stuck = sampler._in_thread(lambda: time.sleep(0.5))
        await sampler.check_health()
        sampler._progress_at -= 100
        with pytest.raises(RuntimeError, match="stall_seconds"):
            await sampler.check_health()
        await stuck

    asyncio.run(check())
