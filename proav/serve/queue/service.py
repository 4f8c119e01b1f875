"""The server without its HTTP: accepts, lists, delivers and forgets jobs.

`api/http.py` puts it on the network, `on_ray/application.py` on Ray Serve. One service owns one jobs folder.
Everything that blocks (files, decoding, drawing) runs in threads.
"""

import asyncio
import functools
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from proav.config import Config
from proav.diffusion.solvers import num_steps
from proav.diffusion.tasks import TASKS
from proav.errors import TOLD, UserError
from proav.generation.long_clips import windows_needed
from proav.runs.checkpoint import load_checkpoint
from proav.serve.front.api_error import ApiError, shown
from proav.serve.orders.model_card import ModelCard
from proav.serve.orders.previews import MEDIA_TYPES, preview
from proav.serve.orders.references import read_data_url, read_given
from proav.serve.orders.requests import Order, check_request, parse_request
from proav.serve.queue.batching import Waiting
from proav.serve.queue.dispatch import Dispatcher, Samplers
from proav.serve.queue.jobs import Job, JobError, JobStore, new_id, place_of
from proav.serve.settings import ServeSettings
from proav.storage.lease import Lease
from proav.vectors import Encoders, to_text

UPLOADS, PREVIEWS = 2, 2
"""How many uploads are decoded or texts encoded at a time, and how many previews are drawn. Neither kind of
work waits for the other.
"""
KEPT_PREVIEWS = 512
SWEEP_SECONDS = 30.0
"""Time between two searches for expired jobs."""
LEASE_LOOK_SECONDS = 0.5
NOT_DELETED = JobError(
    code="cancelled", message="it was deleted before it was made, but some of its files could not be removed"
)
"""Why a job ends whose deletion failed: nobody makes it any more."""
RENEWALS = 6
"""How often the lease is renewed within the time after which it would lapse."""

logger = logging.getLogger(__name__)


def lease_of(settings: ServeSettings) -> Lease:
    """The lease by which a server holds its jobs folder."""
    beat_seconds = settings.lease_seconds / RENEWALS
    timing = {"stale_seconds": settings.lease_seconds, "beat_seconds": beat_seconds}
    return Lease(settings.jobs_dir, name="server", advice="choose another jobs_dir=DIR", **timing)


class Service:
    """Jobs of one model."""

    def __init__(self, settings: ServeSettings, samplers: Samplers) -> None:
        """Opens the checkpoint's description and the jobs folder. Raises UserError."""
        # Not verified here: the samplers verify what they load.
        checkpoint = load_checkpoint(settings.checkpoint, kind="stdit", verify=False)
        self.settings, self.config = settings, checkpoint.config
        self.card = ModelCard.of(checkpoint, settings)
        _tell_lowered(self.card, self.config, settings)
        self._encoders = Encoders(settings.encoders, self.card.vectors, setting="encoders")
        self.dispatcher = Dispatcher(samplers, self.config, settings, deliver=self._deliver)
        self._store = JobStore(settings.jobs_dir)
        self._lease = lease_of(settings)
        self._jobs: dict[str, Job] = {}
        self._num_arriving = 0
        self._uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="uploads")
        self._drawing = ThreadPoolExecutor(PREVIEWS, thread_name_prefix="previews")
        self._previews: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._tasks: list[asyncio.Task] = []

    async def start(self) -> None:
        """Queues the unfinished jobs of an earlier server, and begins to sample.

        Raises LeaseHeld if another server keeps the jobs folder.
        """
        # An earlier server of this application may still be ending, or may have ended on another node.
        try:
            await asyncio.to_thread(self._lease.acquire, wait_seconds=2 * self.settings.lease_seconds)
        except UserError as error:  # Ray Serve says that the start failed, but not why
            logger.error("%s", error)
            raise
        for job in await asyncio.to_thread(self._store.load):
            if job.checkpoint == self.card.checkpoint_hash:
                job.order = job.order.filled(self.card)
            self._jobs[job.id] = job
        unfinished = [job for job in self._jobs.values() if not job.finished]
        for job in unfinished:
            await self._take_up(job)
        if self._jobs:
            logger.info(
                "%d jobs on record in %s, of which %d are to be made",
                len(self._jobs),
                self._store.folder,
                len(unfinished),
            )
        works = self.dispatcher.run(), self._sweep(), self._watch_lease()
        self._tasks = [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """Abandons the running jobs; a later server makes them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in (self._uploads, self._drawing):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._lease.release)

    async def create(self, fields: dict[str, Any], upload: bytes | None) -> Job:
        """Checks a request and queues a job for it.

        fields: those of the body. upload: bytes of input_reference; None if it is no file. Raises ApiError.
        """
        request = parse_request(fields)
        order = check_request(
            request, self.card, has_reference=upload is not None or request.input_reference is not None
        )
        if trouble := self.trouble():
            raise ApiError(
                503,
                f"{trouble}; try again later",
                code="no_sampler",
                retry_after_seconds=self.settings.health_seconds,
            )
        if len(self.dispatcher.queue) + self._num_arriving >= self.settings.max_queued_jobs:
            wait = self.dispatcher.free_after_seconds()
            said = (
                f"the queue is full ({self.settings.max_queued_jobs} jobs wait); "
                f"try again in about {wait:.0f} s"
            )
            raise ApiError(429, said, code="queue_full", retry_after_seconds=wait)
        self._num_arriving += 1
        try:
            given = None
            if TASKS[order.task].reads:
                data = upload if upload is not None else read_data_url(request.input_reference.image_url)
                read = functools.partial(
                    read_given, data, order.task, self.config,
                    deadline_seconds=self.settings.decode_seconds, max_bytes=self.settings.max_decode_bytes,
                    max_windows=self.settings.max_windows, num_frames=order.num_frames,
                )  # fmt: skip
                given = await asyncio.get_running_loop().run_in_executor(self._uploads, read)
            order, seconds = self._with_length(order, given)
            if order.texts:
                order = await asyncio.get_running_loop().run_in_executor(self._uploads, self._encoded, order)
            now = round(time.time(), 6)  # to the microsecond, as in the id
            job = Job(
                id=new_id(now),
                order=order,
                model=self.card.id,
                size=self.card.size,
                seconds=f"{seconds:g}",
                checkpoint=self.card.checkpoint_hash,
                created=now,
            )
            await asyncio.to_thread(self._store.create, job, given)
        except TOLD as error:
            logger.error("a job cannot be kept: %s", error)
            raise _storage_failed("write to") from error
        finally:
            self._num_arriving -= 1
        self._jobs[job.id] = job
        self.dispatcher.submit(Waiting(job, given))
        return job

    def _with_length(self, order: Order, given: dict[str, np.ndarray] | None) -> tuple[Order, float]:
        """The order with its number of windows, and the seconds of its clip.

        given: the streams of its file. Raises ApiError 400 if the clip would need too many windows, or none.
        """
        card, there = self.card, len(given["video"]) if TASKS[order.task].extends else 0
        if order.num_frames is None:
            seconds = there / card.geometry.fps + order.num_windows * card.window_seconds
            return order, seconds if there else card.geometry.seconds
        seconds = order.num_frames / card.geometry.fps
        try:
            num_windows = windows_needed(self.config, order.task, order.num_frames, there)
        except UserError as error:
            raise ApiError(400, str(error), param="seconds") from error
        if num_windows > card.max_windows:
            has, most = there / card.geometry.fps, card.max_windows * card.window_seconds
            said = f"seconds={seconds:g}: the given clip has {has:g} s, and goes on by at most {most:g} s; "
            raise ApiError(400, f"{said}expected at most {has + most:g}", param="seconds")
        return order.model_copy(update={"num_windows": num_windows}), seconds

    def _encoded(self, order: Order) -> Order:
        """The order with the vectors of its texts. It then determines the clip without the encoders."""
        try:
            (made,) = self._encoders([order.texts])
        except UserError as error:
            raise ApiError(500, f"a text could not be encoded: {error}", code="encoder_failed") from error
        vectors = {name: to_text(values) for name, values in made.items()}
        return order.model_copy(update={"vectors": order.vectors | vectors})

    def trouble(self) -> str | None:
        """Why new jobs would wait in vain; None if all is well."""
        if self._lease.lost:
            return "another server has taken over the jobs folder"
        return self.dispatcher.trouble()

    def require_lease(self) -> None:
        """Raises UserError if another server has taken over the jobs folder."""
        self._lease.check()

    async def health(self) -> tuple[bool, str]:
        """(whether clips can be made, how that is known)."""
        return (False, self.trouble()) if self._lease.lost else await self.dispatcher.health()

    def get(self, job_id: str) -> Job:
        """The job of this id. Raises ApiError 404."""
        if job_id not in self._jobs:
            raise ApiError(
                404,
                f"there is no video {shown(job_id)}: it was deleted, has expired, or never was",
                param="video_id",
                code="not_found",
            )
        return self._jobs[job_id]

    def describe(self, job: Job) -> dict:
        """The job as clients see it."""
        return job.to_json(self.dispatcher.queue.position(job.id))

    def page(self, *, limit: int, after: str | None, newest_first: bool) -> tuple[list[Job], bool]:
        """(at most `limit` jobs by time of creation, whether there are more).

        after: id of the job after which the page begins; None: from the start. The job may be deleted: its
            id says where it was.
        Raises ApiError 400 if `after` is no id.
        """
        jobs = sorted(self._jobs.values(), key=lambda job: job.place, reverse=newest_first)
        if after is not None:
            place = self._jobs[after].place if after in self._jobs else place_of(after)
            if place is None:
                raise ApiError(400, f"after={shown(after)} is no id of a video of this server", param="after")
            jobs = [job for job in jobs if (job.place < place if newest_first else job.place > place)]
        return jobs[:limit], len(jobs) > limit

    async def content(self, job_id: str, variant: str) -> tuple[bytes, str]:
        """(bytes, media type) of the clip or of one of its previews.

        Raises ApiError: 404 for an unknown job, 409 if there is no clip (yet), 400 for an unknown variant.
        """
        job = self.get(job_id)
        if job.status != "completed":
            why = f"it is {job.status.replace('_', ' ')}" + (
                f": {job.error.message}" if job.error else f", {job.progress} % done"
            )
            raise ApiError(
                409,
                f"video {job_id} has no content: {why}",
                param="video_id",
                code="failed" if job.error else "not_ready",
            )
        if variant not in MEDIA_TYPES:
            raise ApiError(
                400, f"variant={shown(variant)}: expected one of {', '.join(MEDIA_TYPES)}", param="variant"
            )
        if (found := self._previews.get((job_id, variant))) is not None:
            self._previews.move_to_end((job_id, variant))
            return found, MEDIA_TYPES[variant]
        try:
            data = await asyncio.to_thread(self._store.read_video, job_id)
        except FileNotFoundError:
            raise ApiError(
                404,
                f"the clip of video {job_id} is no longer in the jobs folder",
                param="video_id",
                code="not_found",
            ) from None
        except TOLD as error:
            logger.error("the clip of %s cannot be read: %s", job_id, error)
            raise _storage_failed("read from") from error
        if variant != "video":
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(self._drawing, preview, data, variant, self.config)
            self._previews[job_id, variant] = data
            while len(self._previews) > KEPT_PREVIEWS:
                self._previews.popitem(last=False)
        return data, MEDIA_TYPES[variant]

    async def delete(self, job_id: str) -> None:
        """Removes a job with all its files, and cancels it if it waits or runs.

        Raises ApiError: 404 for an unknown job, 503 if its files cannot be removed; then the job stays.
        """
        self.get(job_id)
        try:
            await self._forget(job_id)
        except (OSError, *TOLD) as error:
            logger.error("%s cannot be deleted: %s", job_id, error)
            raise _storage_failed("delete from") from error

    async def _forget(self, job_id: str) -> None:
        job = self._jobs.pop(job_id)
        self.dispatcher.cancel(job_id)
        for variant in MEDIA_TYPES:
            self._previews.pop((job_id, variant), None)
        try:
            await asyncio.to_thread(self._store.delete, job_id)
        except (OSError, *TOLD):
            self._jobs[job_id] = job  # it would be there again after a restart
            if not job.finished:  # nobody makes it any more
                job.finish(time.time(), self.settings.keep_seconds, NOT_DELETED)
            raise

    async def _deliver(self, job: Job, mp4: bytes | None, error: JobError | None) -> None:
        """Keeps a clip, then the record of its job, and only then marks the job finished.

        So a job that says completed is completed after a restart, too.
        """
        now = time.time()
        if self._lease.lost:  # what the other server writes stays
            return
        try:
            if mp4 is not None:
                await asyncio.to_thread(self._store.save_video, job.id, mp4)
            record = job.model_copy()
            record.finish(now, self.settings.keep_seconds, error)
            await asyncio.to_thread(self._store.save, record)
        except (OSError, *TOLD) as failure:
            logger.error("the clip of %s cannot be kept: %s", job.id, failure)
            error = JobError(code="storage_failed", message="the server could not keep the clip")
        job.finish(now, self.settings.keep_seconds, error)
        if job.id not in self._jobs:  # deleted while it was being written
            try:
                await asyncio.to_thread(self._store.delete, job.id)
            except (OSError, *TOLD) as failure:
                logger.error("the files of %s, which was deleted, stay: %s", job.id, failure)

    async def _take_up(self, job: Job) -> None:
        """Queues a job that an earlier server did not finish, or says why it cannot be made any more."""
        if job.checkpoint != self.card.checkpoint_hash:
            error = JobError(
                code="checkpoint_changed",
                message="the server was started with another checkpoint before this clip was made; "
                "send it again",
            )
            await self._deliver(job, None, error)
            return
        try:
            given = await asyncio.to_thread(self._store.read_given, job)
        except (OSError, ValueError, *TOLD) as problem:
            logger.warning("the input_reference of %s cannot be read: %s", job.id, problem)
            await self._deliver(
                job,
                None,
                JobError(code="storage_failed", message="its input_reference was lost; send it again"),
            )
            return
        job.status, job.progress = "queued", 0
        self.dispatcher.submit(Waiting(job, given))

    async def _watch_lease(self) -> None:
        """Stops all work if another server takes the folder over.

        This happens if this server was suspended for a long time.
        """
        while not self._lease.lost:
            await asyncio.sleep(LEASE_LOOK_SECONDS)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _sweep(self) -> None:
        """Removes expired jobs, every SWEEP_SECONDS."""
        while True:
            now = time.time()
            for job in [job for job in self._jobs.values() if job.expires is not None and job.expires <= now]:
                if job.id not in self._jobs:  # a client deleted it meanwhile
                    continue
                try:
                    await self._forget(job.id)
                except (OSError, *TOLD) as error:
                    logger.warning("%s has expired and is deleted later: %s", job.id, error)
            await asyncio.sleep(SWEEP_SECONDS)


def _tell_lowered(card: ModelCard, config: Config, settings: ServeSettings) -> None:
    """Says in the log if the default steps are fewer than those of the model's run. config: of that run."""
    own = num_steps(config.generate.steps, card.process.objective)
    if settings.steps is None and card.steps < own:
        logger.warning(
            "the default steps=%d of the model's run is lowered to steps=%d: more are not possible with "
            "solver=%s, schedule_shift=%g and max_steps=%d",
            own, card.steps, card.solver, card.schedule_shift, card.max_steps,
        )  # fmt: skip


def _storage_failed(what: str) -> ApiError:
    said = f"the server cannot {what} its jobs folder; its log says why"
    return ApiError(503, said, code="storage_failed", retry_after_seconds=60)
