"""Orders with vectors and texts, around one real sampler."""

import json

import numpy as np
import pytest

from proav.errors import UserError
from proav.generation.pipeline import SoundingVideoPipeline
from proav.media.container import encode_clip
from proav.serve.front.api_error import ApiError
from proav.serve.on_ray.sampler import Sampler
from proav.serve.queue.service import Service
from proav.serve.settings import ServeSettings, read_settings
from tests.serve.queue.scenarios import finished, run
from tests.tiny import save_tiny_stdit, tiny_config

HERE = "tests.serve.queue.test_told"


def encode(texts):
    return np.array([[len(text), 1.0] for text in texts])


def too_wide(texts):
    return np.ones((len(texts), 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    config = tiny_config("stdit.vectors={caption: 2, words: [2, 2]}")
    return save_tiny_stdit(str(tmp_path_factory.mktemp("told")), config)


def settings_of(checkpoint, folder, function="encode") -> ServeSettings:
    arguments = {
        "checkpoint": checkpoint,
        "jobs_dir": str(folder),
        "encoders": f"{{caption: {HERE}:{function}}}",
    }
    return read_settings(arguments)


def test_a_prompt_and_numbers_make_the_clip_that_python_makes(checkpoint, tmp_path):
    settings = settings_of(checkpoint, tmp_path)

    async def scenario(service):
        jobs = []
        for fields in (
            {"prompt": "a glass falls", "label": "rain;speech", "seed": 3},
            {"vectors": {"words": [[1, 2]], "caption": [13, 1]}, "seed": 4},
        ):
            jobs.append(await service.create(fields, None))
            await finished(jobs[-1])  # one by one, since the last bits depend on the batch
        return [(service.describe(job), (await service.content(job.id, "video"))[0]) for job in jobs]

    (first, first_clip), (second, second_clip) = run(
        Service(settings, Sampler(checkpoint, device="cpu")), scenario
    )
    assert first["texts"] == {"caption": "a glass falls"} and first["label"] == "rain;speech"
    assert "vectors" not in first and "texts" not in second
    pipeline, caption = SoundingVideoPipeline.from_checkpoint(checkpoint), {"caption": [13, 1]}
    more = {"steps": 3, "guidance_scale": 1.5}
    (clip,) = pipeline(label="rain;speech", vectors=caption, seed=3, **more)
    assert first_clip == encode_clip(clip)
    (clip,) = pipeline(vectors=caption | {"words": [[1, 2]]}, seed=4, **more)
    assert second_clip == encode_clip(clip)
    stored = json.loads((tmp_path / first["id"] / "job.json").read_text())
    assert stored["order"]["vectors"].keys() == {"caption"}  # a later server needs no encoder for it


def test_the_card_says_what_the_model_takes(checkpoint, tmp_path):
    card = Service(settings_of(checkpoint, tmp_path), None).card.to_json()
    assert card["vectors"] == {
        "caption": {"shape": [2], "takes_text": True}, "words": {"shape": [2, 2], "takes_text": False}
    }  # fmt: skip


def test_a_text_that_no_later_server_would_read_is_refused(checkpoint, tmp_path):
    async def scenario(service):
        with pytest.raises(ApiError, match="send shorter texts") as refused:
            await service.create({"vectors": {"caption": "\u96e8" * 2_800_000}}, None)
        kept = await service.create({"vectors": {"caption": "\u96e8" * 2_000}, "steps": 1}, None)
        await finished(kept)
        return refused.value.status, refused.value.param, kept.status

    service = Service(settings_of(checkpoint, tmp_path), Sampler(checkpoint, device="cpu"))
    assert run(service, scenario) == (400, "vectors", "completed")
    assert len(list(tmp_path.glob("video_*"))) == 1


def test_an_encoder_that_does_not_fit_is_reported(checkpoint, tmp_path):
    with pytest.raises(UserError, match="has no function absent"):
        Service(settings_of(checkpoint, tmp_path, "absent"), None)

    async def scenario(service):
        with pytest.raises(ApiError, match="could not be encoded: .*too_wide has the shape .3.") as refused:
            await service.create({"prompt": "a glass falls"}, None)
        return refused.value.status

    sampler = Sampler(checkpoint, device="cpu")
    assert run(Service(settings_of(checkpoint, tmp_path, "too_wide"), sampler), scenario) == 500
