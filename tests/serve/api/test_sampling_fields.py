"""Solver, shift of times and interval of guidance of a request.

The port and the sampler are real, without Ray.
"""

import time

import pytest
import requests

from proav.generation.pipeline import SoundingVideoPipeline
from proav.media.container import encode_clip
from proav.serve.on_ray.sampler import Sampler
from proav.serve.settings import ServeSettings
from tests.serve.conftest import Front
from tests.tiny import save_tiny_stdit, tiny_config

SAMPLING = [
    {"solver": "heun"},
    {"solver": "dpmpp_2m", "schedule_shift": 3.0},
    {"schedule_shift": 2.5, "guidance_interval": (0.25, 0.8)},
    {"solver": "heun", "schedule_shift": 4.0, "guidance_interval": (0.0, 0.5), "audio_guidance_scale": 3.0},
]


def made(front, **body):
    """The finished job of a request, and its mp4."""
    answer = requests.post(f"{front.url}/v1/videos", **body)
    assert answer.status_code == 200, answer.text
    address = f"{front.url}/v1/videos/{answer.json()['id']}"
    deadline = time.monotonic() + 60
    while (job := requests.get(address).json())["status"] != "completed":
        assert job["status"] != "failed" and time.monotonic() < deadline, job
        time.sleep(0.02)
    return job, requests.get(f"{address}/content").content


def refused(front, **body):
    """The error of a request that gets a 400."""
    answer = requests.post(f"{front.url}/v1/videos", **body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and set(error) == {"message", "type", "param", "code"}, answer.text
    return error


@pytest.fixture
def flow_map_front(tmp_path):
    """A `Front` of a flow map."""
    words = "diffusion.objective=flow_map", "distill.guidance_scale=2", "generate.guidance_scale=1"
    path = save_tiny_stdit(str(tmp_path / "model"), tiny_config(*words))
    settings = ServeSettings(checkpoint=path, jobs_dir=str(tmp_path / "jobs"))
    with Front(settings, Sampler(path, threads=1, device="cpu")) as front:
        yield front


def test_clips_are_the_pipelines_bit_for_bit(front, tiny_checkpoint):
    pipeline = SoundingVideoPipeline.from_checkpoint(tiny_checkpoint)
    clips = set()
    for sampling in [{}, *SAMPLING]:
        fields = {"label": "rain", "seed": 4, "steps": 3, "guidance_scale": 2.0, **sampling}
        job, mp4 = made(front, json=fields)
        (clip,) = pipeline(**fields)
        assert mp4 == encode_clip(clip), sampling
        told = {name: job[name] for name in sampling}
        assert told == {**sampling} | {k: list(v) for k, v in sampling.items() if isinstance(v, tuple)}
        clips.add(mp4)
    assert len(clips) == 1 + len(SAMPLING)  # every setting matters


def test_a_form_says_the_same_as_json(front):
    fields = {"seed": 4, "steps": 3, "solver": "heun", "schedule_shift": 3, "guidance_interval": [0.25, 0.8]}
    form = {**fields, "guidance_interval": "0.25, 0.8"}
    by_json, by_form = (
        made(front, json=fields),
        made(front, files={key: (None, str(form[key])) for key in form}),
    )
    assert by_json[1] == by_form[1]
    assert {key: by_form[0][key] for key in fields} == fields
    empty = {key: (None, "") for key in ("solver", "schedule_shift", "guidance_interval")}
    job, _ = made(front, files={"steps": (None, "1"), **empty})
    assert (job["solver"], job["schedule_shift"], job["guidance_interval"]) == ("euler", 1.0, [0.0, 1.0])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("solver", "hune", "solver='hune': expected one of euler, heun, dpmpp_2m, ddim"),
        ("solver", "flow_map", "expected one of euler, heun, dpmpp_2m, ddim (this model takes no other)"),
        ("solver", "x" * 5000, "expected one of euler"),
        ("schedule_shift", "0.5", "schedule_shift=0.5: expected 1 to 100"),
        ("schedule_shift", "101", "expected 1 to 100"),
        ("schedule_shift", "nan", "finite"),
        ("schedule_shift", "strong", "1 to 100"),
        (
            "guidance_interval",
            "0.8,0.2",
            "guidance_interval=[0.8,0.2]: expected two times in [0, 1], the smaller",
        ),
        ("guidance_interval", "-0.1,0.2", "such as [0.1,0.8]"),
        ("guidance_interval", "0,1.5", "such as [0.1,0.8]"),
        ("guidance_interval", "0.5", "in a form 0.1,0.8"),
        ("guidance_interval", "0.1,0.2,0.3", "in a form 0.1,0.8"),
        ("guidance_interval", "nan,1", "finite"),
    ],
)
def test_a_wrong_value_is_refused_in_json_and_in_a_form(front, field, value, said):
    for body in ({"json": {field: value}}, {"files": {field: (None, value)}}):
        error = refused(front, **body)
        assert error["param"] == field and said in error["message"] and len(error["message"]) < 500, error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"solver": 3}, "solver"),
        ({"solver": ["heun"]}, "solver"),
        ({"solver": ""}, "solver"),
        ({"schedule_shift": True}, "schedule_shift"),
        ({"schedule_shift": [2]}, "schedule_shift"),
        ({"guidance_interval": [True, 1]}, "guidance_interval"),
        ({"guidance_interval": [0.1]}, "guidance_interval"),
        ({"guidance_interval": {"low": 0}}, "guidance_interval"),
        ({"guidance_interval": 0.5}, "guidance_interval"),
        ({"guidance_intervall": [0, 1]}, "guidance_intervall"),
    ],
)
def test_json_of_another_kind_is_refused(front, fields, param):
    assert refused(front, json=fields)["param"] == param


def test_the_limit_of_steps_counts_calls_of_the_model(front):
    """By default a request may ask for 200 calls; heun makes two a step, but the last has one."""
    (model,) = requests.get(f"{front.url}/v1/models").json()["data"]
    most = {"euler": 200, "heun": 100, "dpmpp_2m": 200, "ddim": 200}
    assert model["solver"] == {"default": "euler", "max_steps": most} and model["steps"]["max"] == 200
    assert model["schedule_shift"] == {"default": 1.0, "max": 100.0}
    assert model["guidance_interval"] == {"default": [0.0, 1.0]}
    error = refused(front, json={"solver": "heun", "steps": 101})
    assert error["param"] == "steps"
    assert error["message"] == "steps=101 with solver=heun and schedule_shift=1: expected 1 to 100"
    accepted = requests.post(f"{front.url}/v1/videos", json={"solver": "heun", "steps": 100}).json()
    assert requests.delete(f"{front.url}/v1/videos/{accepted['id']}").status_code == 200


def test_a_flow_map_keeps_its_own_solver_and_guidance(flow_map_front):
    front = flow_map_front
    (model,) = requests.get(f"{front.url}/v1/models").json()["data"]
    assert model["solver"] == {"default": "flow_map", "max_steps": {"flow_map": 200}}
    for field, value, said in (
        ("solver", "heun", "solver='heun': expected one of flow_map (this model takes no other)"),
        ("guidance_interval", [0.1, 0.8], "guidance at all times; leave guidance_interval out"),
        ("guidance_scale", 3, "guidance_scale=3.0: expected 2 to 2"),
    ):
        error = refused(front, json={field: value})
        assert error["param"] == field and said in error["message"]
    fields = {"seed": 2, "steps": 3, "solver": "flow_map", "schedule_shift": 2.0, "guidance_interval": (0, 1)}
    job, mp4 = made(front, json=fields)
    (clip,) = SoundingVideoPipeline.from_checkpoint(front.service.settings.checkpoint)(**fields)
    assert mp4 == encode_clip(clip) and job["guidance_scale"] == 2
    # 1 asks for no guidance beside what it has learned, as in Python
    job, mp4 = made(front, json=fields | {"guidance_scale": 1, "audio_guidance_scale": 1.0})
    assert mp4 == encode_clip(clip) and job["guidance_scale"] == 2


def test_the_schema_has_the_fields_with_their_meaning(front):
    schemas = requests.get(f"{front.url}/openapi.json").json()["components"]["schemas"]
    for name in ("solver", "schedule_shift", "guidance_interval"):
        assert all(schemas[body]["properties"][name]["description"] for body in ("VideoRequest", "VideoForm"))
        assert name in requests.get(f"{front.url}/docs").text
