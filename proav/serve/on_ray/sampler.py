"""One sampler: a model in memory, and a thread that samples batches with it while the event loop stays free.

`application.py` makes it a Ray deployment. This file imports no Ray, so that a sampler runs alone in a test.
`queue/batching.py` decides what is sampled together. A batch stays together from its first step to its last.
If its consumer closes the stream, it stops before the next denoising step.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip, encode_clip

IDLE_PROBE_SECONDS = 60.0
"""If an idle sampler has made no step for this time, it samples one to show that it can."""

logger = logging.getLogger(__name__)


class Abandoned(Exception):
    """Ends the sampling between two steps, if nobody waits for the batch or another part of it has failed."""


class Sampler:
    """Batches in, progress and mp4 files out."""

    def __init__(
        self,
        checkpoint: str,
        *,
        threads: int | None = None,
        device: str | None = None,
        stall_seconds: float = 120.0,
        sign_seconds: float = 2.0,
    ) -> None:
        """Loads the checkpoint and samples one step, which shows that the sampler works.

        checkpoint: ST-DiT checkpoint, its folder or a `latest` file.
        threads: number of PyTorch threads; None leaves it as it is.
        device: torch device; None takes the GPU if this process has one.
        stall_seconds: time without a denoising step that counts as trouble.
        sign_seconds: longest silence of a batch that is being sampled.
        Raises CheckpointError.
        """
        self._num_threads = threads or torch.get_num_threads()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint, device=device)
        self._stall_seconds, self._sign_seconds = stall_seconds, sign_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._helpers = ThreadPoolExecutor(max_workers=self._num_threads, thread_name_prefix="helping")
        self._num_parts = self._num_threads if device == "cpu" else 1
        self._busy = 0
        self._progress_at = time.monotonic()
        self._sample_probe()
        logger.info("sampling on %s with %d threads, process %d", device, self._num_threads, os.getpid())

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncIterator[dict[str, Any]]:
        """Samples one batch; yields its progress, then its clips.

        Progress is {"done": 0 .. total, "total": calls of the model}. The first comes at once. During a long
        call the last one is repeated, as a sign of life. The clips are {"clips": [bytes of an mp4, ...]}, in
        the order of `requests`.
        """
        loop, events, abandoned = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def tell(done: int, total: int) -> None:
            self._progress_at = time.monotonic()
            if abandoned.is_set():
                raise Abandoned
            loop.call_soon_threadsafe(events.put_nowait, {"done": done, "total": total})

        total = sum(self._pipeline.num_calls(requests))
        work = self._in_thread(lambda: self._sample_batch(requests, total, tell))
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            event = {"done": 0, "total": total}
            while event is not None:
                yield event
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._sign_seconds):
                        event = await events.get()
            yield {"clips": await work}
        finally:
            abandoned.set()
            if not work.done():
                # Nobody else will look at its exception.
                work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def probe(self) -> float:
        """Samples one step. Returns the seconds that this took, including the wait for a running batch."""
        began = time.monotonic()
        await self._in_thread(self._sample_probe)
        return time.monotonic() - began

    def trouble(self) -> str | None:
        """Why this sampler should be replaced: it is at work and makes no progress. None if all is well."""
        silence = time.monotonic() - self._progress_at
        if not self._busy or silence <= self._stall_seconds:
            return None
        expected = f"expected one within stall_seconds={self._stall_seconds:g}"
        return f"no denoising step for {silence:.0f} s; {expected}"

    async def check_health(self) -> None:
        """Called by Serve every few seconds. Raises if it cannot sample, so that this sampler is replaced."""
        if trouble := self.trouble():
            raise RuntimeError(trouble)
        if not self._busy and time.monotonic() - self._progress_at > IDLE_PROBE_SECONDS:
            await self.probe()

    def _in_thread(self, work: Callable[[], Any]) -> asyncio.Future:
        if not self._busy:
            self._progress_at = time.monotonic()  # a stall is counted from the start of the work
        self._busy += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)

        def ended(_) -> None:
            self._busy -= 1

        future.add_done_callback(ended)
        return future

    def _sample_batch(
        self, requests: Sequence[SampleRequest], total: int, tell: Callable[[int, int], None]
    ) -> list[bytes]:
        """The mp4 files of one batch.

        On a CPU each thread takes a part of the batch through all steps. That is faster than to share every
        matrix product among all threads.
        """
        tell(0, total)
        size = -(-len(requests) // self._num_parts)
        parts = [requests[first : first + size] for first in range(0, len(requests), size)]
        if len(parts) == 1:
            torch.set_num_threads(self._num_threads)
            clips = self._pipeline.sample(requests, on_step=tell)
        else:
            clips = self._sample_parts(parts, total, tell)
        self._progress_at = time.monotonic()
        return list(self._helpers.map(encode_clip, clips))

    def _sample_parts(
        self, parts: list[Sequence[SampleRequest]], total: int, tell: Callable[[int, int], None]
    ) -> list[Clip]:
        """Samples each part in a thread; a call of the model is reported when every part has made it.

        The first failure ends all parts. So does a batch that is given up.
        """
        done, lock, broken = [0] * len(parts), threading.Lock(), threading.Event()

        def sample_part(index: int) -> list[Clip]:
            def on_step(step: int, _: int) -> None:
                if broken.is_set():
                    raise Abandoned
                with lock:
                    before, done[index] = min(done), step
                    if min(done) > before:
                        tell(min(done), total)

            torch.set_num_threads(1)  # OpenMP keeps this per thread, MKL for all threads
            try:
                clips = self._pipeline.sample(parts[index], on_step=on_step)
                on_step(total, total)  # a part with fewer calls holds back no other
                return clips
            except BaseException:
                broken.set()
                raise

        made = [self._helpers.submit(sample_part, index) for index in range(len(parts))]
        wait(made)
        failures = [failure for part in made if (failure := part.exception())]
        if failures:
            raise next((failure for failure in failures if not isinstance(failure, Abandoned)), failures[0])
        return [clip for part in made for clip in part.result()]

    def _sample_probe(self) -> None:
        torch.set_num_threads(self._num_threads)
        self._pipeline.sample([SampleRequest(settings=SamplingSettings(steps=1))])
        self._progress_at = time.monotonic()
