"""Jobs of clips of any length: the clip is the pipeline's, within the limits of the server."""

import io

import pytest

from proav.generation.pipeline import SoundingVideoPipeline
from proav.media.container import encode_clip, read_clip
from proav.serve.front.api_error import ApiError
from proav.serve.on_ray.sampler import Sampler
from proav.serve.queue.service import Service
from proav.serve.settings import ServeSettings
from tests.serve.queue.scenarios import Stuck, Unreliable, after_a_restart, finished, run
from tests.synthetic_clips import make_clip

SETTINGS = {"seed": 3, "steps": 2}


@pytest.fixture(scope="module")
def sampler(masked_checkpoint):
    return Sampler(masked_checkpoint, device="cpu")


@pytest.fixture
def settings(masked_checkpoint, tmp_path):
    return ServeSettings(checkpoint=masked_checkpoint, jobs_dir=str(tmp_path / "jobs"), max_windows=4)


def test_clips_of_a_length_are_the_pipelines(masked_checkpoint, settings, sampler):
    """Each request is kept by a server that ends before it is made, and made by the next one."""
    upload = encode_clip(make_clip(1, seconds=2.0))
    asked = {"joint": "1.8", "a2v": 1.8, "v2a": 1.6, "i2av": 0.6, "continue": 2.6}

    orders = [
        ({"task": task, "seconds": seconds, **SETTINGS}, None if task == "joint" else upload)
        for task, seconds in asked.items()
    ]
    made = after_a_restart(settings, sampler, orders)
    pipeline = SoundingVideoPipeline.from_checkpoint(masked_checkpoint)
    clip = read_clip(io.BytesIO(upload), fps=5, sample_rate=16_000, height=32, width=32, fit="crop")
    for (task, seconds), (told, mp4) in zip(asked.items(), made, strict=True):
        given = {} if task == "joint" else {"clip": clip}
        (expected,) = pipeline(task=task, seconds=float(seconds), guidance_scale=1.5, **SETTINGS, **given)
        assert told == f"{float(seconds):g}" and mp4 == encode_clip(expected), task


def test_jobs_of_as_many_windows_share_a_batch(settings, sampler):
    counted = Unreliable(sampler)
    patient = settings.model_copy(update={"batch_wait_seconds": 60.0, "max_batch_size": 2})

    async def scenario(service):
        jobs = [await service.create({"seconds": seconds, "steps": 1}, None) for seconds in (1.0, 1.2)]
        await finished(*jobs)
        return [job.order.num_windows for job in jobs]

    assert run(Service(patient, counted), scenario) == [2, 2] and counted.sizes == [2]


def test_a_clip_goes_on_no_further_than_the_server_lets_it(settings, sampler):
    upload = encode_clip(make_clip(1, seconds=1.2))

    async def scenario(service):
        told = []
        for seconds in (1.2, 3.0):
            with pytest.raises(ApiError) as refused:
                await service.create({"task": "continue", "seconds": seconds, **SETTINGS}, upload)
            assert (refused.value.status, refused.value.param) == (400, "seconds")
            told.append(refused.value.message)
        job = await service.create({"task": "continue", "seconds": 2.8, "steps": 1}, upload)
        return told, job.order.num_windows

    (there, beyond), num_windows = run(Service(settings, Stuck(sampler)), scenario)
    assert "seconds=1.2: the given clip has 1.2 s already" in there and num_windows == 4
    assert beyond == (
        "seconds=3: the given clip has 1.2 s, and goes on by at most 1.6 s; expected at most 2.8"
    )
