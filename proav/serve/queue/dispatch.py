"""Sends waiting jobs to samplers: as many batches at a time as there are samplers.

It follows the progress, failure and cancellation of each batch. It knows no HTTP and no Ray: a sampler is any
object that has `sample` and `probe`. All methods run on one event loop, and none blocks it. Not here: which
jobs share a batch (`batching.py`).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from proav.config import Config
from proav.generation.given_files import clip_of_streams
from proav.generation.inputs import frames_around
from proav.generation.pipeline import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.geometry import ClipGeometry
from proav.serve.queue.batching import JobQueue, Waiting
from proav.serve.queue.jobs import Job, JobError
from proav.serve.queue.pace import Pace
from proav.serve.settings import ServeSettings
from proav.vectors import of_text

MAX_LOST_BATCHES = 3
"""A job fails if its sampler is lost this many times, since the job may be the cause."""
MAX_WAIT_SECONDS = 3600.0
"""The longest time after which a client is told to ask again."""

logger = logging.getLogger(__name__)


class SamplerLost(Exception):
    """The sampler ended in the middle of a batch; another sampler may make the batch."""


class Samplers(Protocol):
    """One or many samplers behind one interface; see `on_ray/sampler.py`."""

    def sample(self, requests: Sequence[SampleRequest]) -> AsyncIterator[dict[str, Any]]: ...

    def probe(self) -> Awaitable[float]: ...


class Batch:
    """Jobs that are being sampled together."""

    def __init__(self, members: list[Waiting]) -> None:
        self.members = members
        first = members[0].job.order
        self.num_jobs, self.num_calls = len(members), first.num_calls * first.num_windows
        self.done, self.total = 0, 1
        """Calls of the model: those made so far, and all that the batch needs."""
        self.sent = self.heard = self.moved = time.monotonic()
        """Seconds of a monotonic clock. sent: when the batch was sent to a sampler, then when sampling began.
        heard: when its sampler last gave a sign of life. moved: when it last made progress."""
        self.started = False
        self.task: asyncio.Task | None = None


class Dispatcher:
    """The queue and the batches in flight."""

    def __init__(
        self,
        samplers: Samplers,
        config: Config,
        settings: ServeSettings,
        *,
        deliver: Callable[[Job, bytes | None, JobError | None], Awaitable[None]],
    ) -> None:
        """samplers: what makes the batches.

        config: that of the run that made the model.
        settings: those of the server.
        deliver: deliver(job, mp4, error) is called once for each job that ends, with either mp4 or error.
        """
        self.queue = JobQueue(
            max_batch_size=settings.max_batch_size, wait_seconds=settings.batch_wait_seconds
        )
        self.evidence_at: float | None = None
        """When a sampler last proved that it can sample, in seconds of a monotonic clock."""
        self._samplers, self._config, self._settings, self._deliver = samplers, config, settings, deliver
        self._max_batches = settings.replica_range[1]
        self._running: list[Batch] = []
        self._changed = asyncio.Event()
        self._pace = Pace()
        self._probe: asyncio.Task | None = None

    def submit(self, waiting: Waiting) -> None:
        """Puts a job at the end of the queue."""
        waiting.since = time.monotonic()
        self.queue.put(waiting)
        self._changed.set()

    def cancel(self, job_id: str) -> None:
        """Takes the job out of the queue or out of its batch.

        A batch that nobody waits for ends before its next denoising step.
        """
        self.queue.remove(job_id)
        for batch in self._running:
            batch.members = [member for member in batch.members if member.job.id != job_id]

    async def run(self) -> None:
        """Sends batches until it is cancelled; then it cancels the running ones."""
        try:
            while True:
                await self._wait_for_change()
                while len(self._running) < self._max_batches and self.queue.delay(time.monotonic()) == 0:
                    self._send(self.queue.take())
        finally:
            tasks = [batch.task for batch in self._running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def poll_after_seconds(self) -> float:
        """Seconds after which a client should ask again: a twentieth of the time of a running batch."""
        seconds = [
            self._pace.expect(num_calls=batch.num_calls, num_jobs=batch.num_jobs) for batch in self._running
        ]
        return min(1.0, max(0.05, min(seconds, default=2.0) / 20))

    def free_after_seconds(self) -> float:
        """Estimate of the seconds until a full queue has room.

        That is when the first of the running batches ends, because the next batch then leaves the queue.
        """
        if len(self._running) < self._max_batches:
            return 1.0
        started = [batch for batch in self._running if batch.started] or self._running
        now = time.monotonic()
        rests = [
            self._pace.rest(
                num_calls=batch.num_calls, num_jobs=batch.num_jobs,
                done=batch.num_calls * batch.done / batch.total,
                elapsed_seconds=now - batch.sent if batch.started else 0.0,
            )
            for batch in started
        ]  # fmt: skip
        return min(MAX_WAIT_SECONDS, max(1.0, min(rests)))

    def trouble(self) -> str | None:
        """Why new jobs would wait in vain; None if all is well.

        No batch that has begun makes progress, or none has begun for too long.
        """
        now = time.monotonic()
        if started := [batch for batch in self._running if batch.started]:
            silence, still = (now - max(getattr(one, what) for one in started) for what in ("heard", "moved"))
            if silence > self._settings.frozen_seconds:
                return f"no sampler has given a sign of life for {silence:.0f} s"
            if still > self._settings.stall_seconds:
                return f"no sampler has made progress for {still:.0f} s"
            return None
        waited = max((now - batch.sent for batch in self._running), default=0.0)
        return (
            f"no sampler has taken a batch for {waited:.0f} s"
            if waited > self._settings.health_seconds
            else None
        )

    async def health(self) -> tuple[bool, str]:
        """(whether a sampler can sample, how that is known).

        Recent progress proves that a sampler can sample, and so does a sign of life during a batch. If no
        batch has begun, one step is sampled as a test.
        """
        if trouble := self.trouble():
            return False, trouble
        age = None if self.evidence_at is None else time.monotonic() - self.evidence_at
        if age is not None and age <= self._settings.health_seconds:
            return True, f"a sampler made progress {age:.1f} s ago"
        if signs := [time.monotonic() - batch.heard for batch in self._running if batch.started]:
            if min(signs) <= self._settings.health_seconds:
                return True, "a sampler is at work on a batch"
            return False, f"no sampler at work has given a sign of life for {min(signs):.0f} s"
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._samplers.probe())
        try:
            async with asyncio.timeout(self._settings.health_seconds):
                seconds = await asyncio.shield(self._probe)
        except TimeoutError:
            return False, f"no sampler made a step within {self._settings.health_seconds:g} s"
        except SamplerLost as error:
            return False, str(error)
        self.evidence_at = time.monotonic()
        return True, f"a step was sampled in {seconds:.2f} s"

    async def _wait_for_change(self) -> None:
        """Returns when a batch may be due."""
        delay = self.queue.delay(time.monotonic()) if len(self._running) < self._max_batches else None
        if delay == 0:
            return
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):  # wait_for of Python 3.11 may swallow a cancellation
                await self._changed.wait()

    def _send(self, members: list[Waiting]) -> None:
        batch = Batch(members)
        self._running.append(batch)
        batch.task = asyncio.create_task(self._run_batch(batch))
        batch.task.add_done_callback(_tell_defect)

    async def _run_batch(self, batch: Batch) -> None:
        asked = list(batch.members)
        try:
            if not asked:  # all were cancelled before this task began
                return
            requests = [_to_sample(member, self._config) for member in asked]
            clips = await self._follow(batch, requests)
            if clips is not None:
                await self._finish(batch, asked, clips)
        except SamplerLost as error:
            await self._lost(batch, error)
        except Exception as error:  # an error of sampling fails these jobs, not the server
            logger.exception("a batch of %d failed", len(asked))
            await self._failed(batch, error)
        finally:
            self._running.remove(batch)
            self._changed.set()

    async def _follow(self, batch: Batch, requests: list[SampleRequest]) -> list[bytes] | None:
        """The clips of a batch; None if all its jobs were cancelled meanwhile."""
        stream = self._samplers.sample(requests)
        try:
            async for event in stream:
                if not batch.members:
                    return None
                batch.heard = time.monotonic()
                if "clips" in event or not batch.started or event["done"] > batch.done:
                    batch.moved = self.evidence_at = batch.heard
                if not batch.started:
                    batch.started, batch.sent = True, batch.heard
                if "clips" in event:
                    return event["clips"]
                batch.done, batch.total = event["done"], event["total"]
                for member in batch.members:
                    member.job.status, member.job.progress = (
                        "in_progress",
                        min(99, 100 * event["done"] // event["total"]),
                    )
        finally:
            await stream.aclose()
        raise SamplerLost("the sampler's answer ended early")

    async def _finish(self, batch: Batch, asked: list[Waiting], clips: list[bytes]) -> None:
        seconds = time.monotonic() - batch.sent
        self._pace.learn(num_calls=batch.num_calls, num_jobs=batch.num_jobs, seconds=seconds)
        delivered = [
            (member, clip) for member, clip in zip(asked, clips, strict=True) if member in batch.members
        ]
        ends = await asyncio.gather(
            *(self._deliver(member.job, clip, None) for member, clip in delivered), return_exceptions=True
        )
        for (member, _), error in zip(delivered, ends, strict=True):
            if error is not None:  # no failure of the sampler: nothing is made again
                logger.error("the clip of %s could not be delivered", member.job.id, exc_info=error)

    async def _lost(self, batch: Batch, error: SamplerLost) -> None:
        """Queues the jobs again, each in a batch of its own: if one of them ends samplers, the others are not
        lost.

        A job that was in MAX_LOST_BATCHES lost batches fails.
        """
        logger.warning("a batch of %d was lost: %s", len(batch.members), error)
        again = []
        for member in batch.members:
            member.attempts += 1
            member.alone = True
            if member.attempts < MAX_LOST_BATCHES:
                member.job.status, member.job.progress = "queued", 0
                again.append(member)
            else:
                said = f"the sampler was lost {member.attempts} times while it made this clip ({error})"
                await self._deliver(member.job, None, JobError(code="sampler_lost", message=said))
        self.queue.put_back(again)

    async def _failed(self, batch: Batch, error: Exception) -> None:
        """Fails a job that was sent alone; tries the jobs of a larger batch again, each alone.

        Jobs that were cancelled meanwhile count: one of them may have been the cause.
        """
        if batch.num_jobs == 1:
            message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            for member in batch.members:  # none if it was cancelled
                await self._deliver(member.job, None, JobError(code="sampling_failed", message=message))
            return
        for member in batch.members:
            member.alone = True
            member.job.status, member.job.progress = "queued", 0
        self.queue.put_back(batch.members)


def _to_sample(member: Waiting, config: Config) -> SampleRequest:
    """What a sampler gets for a job."""
    order = member.job.order
    settings = SamplingSettings(
        task=order.task,
        steps=order.steps,
        solver=order.solver,
        schedule_shift=order.schedule_shift,
        guidance_scale=order.guidance_scale,
        audio_guidance_scale=order.audio_guidance_scale,
        guidance_interval=order.guidance_interval,
    )
    shapes = config.stdit.vector_shapes
    return SampleRequest(
        seed=order.seed,
        label=order.label,
        given=clip_of_streams(config, order.task, member.given or {}, order.num_frames),
        settings=settings,
        known=frames_around(ClipGeometry.from_config(config), order.task, order.span, order.stream),
        num_windows=order.num_windows,
        num_frames=order.num_frames,
        vectors={name: of_text(text, shapes[name]) for name, text in order.vectors.items()},
    )


def _tell_defect(task: asyncio.Task) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("a defect while a batch ended", exc_info=error)
