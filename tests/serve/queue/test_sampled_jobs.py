"""Jobs with unlike solvers, shifts of times and intervals of guidance.

Which of them share a batch, and what becomes of records of older servers.
"""

import io
import logging

import numpy as np

from proav.media.container import read_clip
from proav.serve.on_ray.sampler import Sampler
from proav.serve.orders.requests import Order
from proav.serve.queue.batching import Waiting
from proav.serve.queue.jobs import Job, JobStore, new_id
from proav.serve.queue.service import Service
from proav.serve.settings import ServeSettings
from tests.serve.queue.scenarios import Unreliable, finished, run
from tests.tiny import save_tiny_stdit, tiny_config


def test_jobs_of_unlike_sampling_share_a_batch_and_equal_those_made_alone(tiny_checkpoint, tmp_path):
    """Five calls of the model each: heun makes five in three steps."""
    orders = [
        {"steps": 5, "schedule_shift": 3.0},
        {"steps": 3, "solver": "heun", "guidance_interval": [0.2, 0.7]},
        {"steps": 5, "solver": "dpmpp_2m", "guidance_scale": 3.0},
    ]
    counted = Unreliable(Sampler(tiny_checkpoint, device="cpu", threads=1))
    settings = ServeSettings(
        checkpoint=tiny_checkpoint, jobs_dir=str(tmp_path), max_batch_size=3, batch_wait_seconds=10.0
    )

    async def made(service, *orders):
        jobs = [await service.create({"seed": 1, "label": "rain", **order}, None) for order in orders]
        await finished(*jobs)
        return [read((await service.content(job.id, "video"))[0]) for job in jobs]

    async def scenario(service):
        together = await made(service, *orders)
        service.dispatcher.queue.wait_seconds = 0.0
        return together, [(await made(service, order))[0] for order in orders]

    together, alone = run(Service(settings, counted), scenario)
    assert counted.sizes == [3, 1, 1, 1]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one - other).mean() < 1
    assert min(np.abs(alone[0] - alone[1]).mean(), np.abs(alone[1] - alone[2]).mean()) > 0


def test_a_job_of_an_older_server_is_made_with_the_settings_of_the_models_run(tmp_path):
    """Its record does not name them. The job reports them, and shares a batch with one that names them."""
    words = "generate.solver=heun", "generate.schedule_shift=3", "generate.guidance_interval=[0.2,0.7]"
    checkpoint = save_tiny_stdit(str(tmp_path / "model"), tiny_config(*words))
    folder = str(tmp_path / "jobs")
    settings = ServeSettings(checkpoint=checkpoint, jobs_dir=folder, max_batch_size=2, batch_wait_seconds=10)
    counted = Unreliable(Sampler(checkpoint, device="cpu"))
    service = Service(settings, counted)
    order = Order(prompt="", label=None, task="joint", seed=3, steps=2, guidance_scale=1.5)
    sizes = {"model": "tiny", "size": "32x32", "seconds": "0.8"}
    old = Job(id=new_id(), order=order, checkpoint=service.card.checkpoint_hash, created=1.0, **sizes)
    other = Job(id=new_id(), order=order, checkpoint="other", created=1.0, **sizes)
    for job in (old, other):
        JobStore(folder).create(job, None)
    names = "solver", "schedule_shift", "guidance_interval"

    async def scenario(service):
        waits = service.get(old.id)
        told = [service.describe(service.get(job.id)) for job in (old, other)]
        new = await service.create({"seed": 3, "steps": 2}, None)
        assert Waiting(waits).key == Waiting(new).key == ("joint", 3, 1)  # heun: three calls in two steps
        await finished(waits, new)
        clips = [(await service.content(job.id, "video"))[0] for job in (waits, new)]
        return [[job[name] for name in names] for job in told], new.order, clips

    (ours, others), named, (first, second) = run(service, scenario)
    assert ours == ["heun", 3.0, (0.2, 0.7)] == [getattr(named, name) for name in names]
    assert others == [None] * 3  # what another checkpoint's run had is not known
    assert counted.sizes == [2] and first == second
    (kept,) = [job for job in JobStore(folder).load() if job.id == old.id]
    assert kept.order == order.filled(service.card)


def test_the_log_says_if_a_default_is_lowered(tmp_path, caplog):
    config = tiny_config("generate.solver=heun", "generate.steps=150")
    checkpoint = save_tiny_stdit(str(tmp_path / "model"), config)

    def default_steps(**settings):
        settings = ServeSettings(checkpoint=checkpoint, jobs_dir=str(tmp_path / "jobs"), **settings)
        return Service(settings, Unreliable(None)).card.steps

    with caplog.at_level(logging.INFO):
        assert (default_steps(max_steps=299), default_steps(steps=90)) == (150, 90) and not caplog.records
        assert default_steps() == 100
    said = "default steps=150 of the model's run is lowered to steps=100: more are not possible with "
    assert f"{said}solver=heun, schedule_shift=1 and max_steps=200" in caplog.text
    assert len(caplog.records) == 1


def read(mp4):
    return read_clip(io.BytesIO(mp4), fps=5, sample_rate=16_000, height=32, width=32).video.astype(int)
