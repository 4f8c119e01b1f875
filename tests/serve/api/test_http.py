"""The HTTP interface of a real server: OpenAI's own client, formats, ranges and refusals.

Nothing that a client sends gives a 500.
"""

import io
import json
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import requests

from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import encode_clip, read_clip
from tests.media.hostile_files import wav
from tests.synthetic_clips import make_clip

pytestmark = pytest.mark.ray


@pytest.fixture
def client(served):
    openai = pytest.importorskip(
        "openai", reason="OpenAI's client is not installed: pip install 'proav[test]'"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0)


def make(served, **fields):
    """Makes a clip and returns its finished job."""
    answer = requests.post(f"{served}/v1/videos", json=fields)
    assert answer.status_code == 200, answer.text
    return wait_for(served, answer.json()["id"])


def wait_for(served, video_id, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = requests.get(f"{served}/v1/videos/{video_id}").json()
        if job["status"] in ("completed", "failed"):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def content(served, video_id, **query):
    return requests.get(f"{served}/v1/videos/{video_id}/content", params=query)


def test_openais_client_makes_lists_reads_and_deletes(client):
    model = client.models.list().data[0]
    assert model.labels == ["rain", "speech"] and client.models.retrieve(model.id).seconds == "0.8"
    video = client.videos.create_and_poll(
        prompt="rain", model=model.id, size="32x32", seconds="0.8", extra_body={"seed": 5, "steps": 2}
    )
    assert (video.status, video.progress, video.label, video.seed, video.seconds, video.size) == (
        "completed",
        100,
        "rain",
        5,
        "0.8",
        "32x32",
    )
    mp4 = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(mp4)) as file:
        assert (file.streams.video[0].width, file.streams.audio[0].rate) == (32, 16_000)
    for variant in ("thumbnail", "spritesheet"):
        assert client.videos.download_content(video.id, variant=variant).read()[:2] == b"\xff\xd8"
    later = client.videos.create_and_poll(
        prompt="", input_reference=("clip.mp4", mp4), extra_body={"task": "v2a", "steps": 1}
    )
    assert later.status == "completed" and later.task == "v2a"
    assert [found.id for found in client.videos.list(limit=1)][:2] == [later.id, video.id]  # page after page
    assert client.videos.delete(later.id).deleted
    with pytest.raises(Exception, match="never was") as error:
        client.videos.retrieve(later.id)
    assert error.value.status_code == 404


def test_the_clip_is_that_of_the_pipeline(served, tiny_checkpoint):
    job = make(served, label="speech", seed=11, steps=3, guidance_scale=2.0, audio_guidance_scale=0.5)
    clip = read_clip(
        io.BytesIO(content(served, job["id"]).content), fps=5, sample_rate=16_000, height=32, width=32
    )
    request = SampleRequest(
        11, 0, "speech", settings=SamplingSettings(steps=3, guidance_scale=2.0, audio_guidance_scale=0.5)
    )
    (own,) = SoundingVideoPipeline.from_checkpoint(tiny_checkpoint).sample([request])
    expected = read_clip(io.BytesIO(encode_clip(own)), fps=5, sample_rate=16_000, height=32, width=32)
    assert (
        np.abs(clip.video.astype(int) - expected.video).mean() < 1
        and np.abs(clip.audio - expected.audio).max() < 0.05
    )


def test_clips_made_together_equal_those_made_alone(served):
    orders = [
        {"seed": seed, "label": label, "guidance_scale": scale, "steps": 4}
        for seed, label, scale in [(1, "rain", 1), (2, "", 3), (3, "speech", 0)]
    ]
    ids = [requests.post(f"{served}/v1/videos", json=order).json()["id"] for order in orders]
    for video_id, order in zip(ids, orders, strict=True):
        wait_for(served, video_id)
        alone = make(served, **order)["id"]
        together, solo = (
            read_clip(
                io.BytesIO(content(served, name).content), fps=5, sample_rate=16_000, height=32, width=32
            ).video.astype(int)
            for name in (video_id, alone)
        )
        assert np.abs(together - solo).mean() < 1


def test_given_sound_comes_back_in_the_clip(served):
    answer = requests.post(
        f"{served}/v1/videos",
        data={"task": "a2v", "steps": "1", "seed": ""},
        files={"input_reference": ("a.wav", wav(0.8))},
    )
    job = wait_for(served, answer.json()["id"])
    clip = read_clip(
        io.BytesIO(content(served, job["id"]).content), fps=5, sample_rate=16_000, height=32, width=32
    )
    tone = 8000 / 32768 * np.sin(np.arange(12_800) / 10)
    assert job["status"] == "completed" and np.corrcoef(clip.audio[1000:-1000], tone[1000:-1000])[0, 1] > 0.99


def test_parts_of_a_clip_can_be_asked_for(served):
    url = f"{served}/v1/videos/{make(served, steps=1)['id']}/content"
    whole = requests.get(url)
    size = len(whole.content)
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    for asked, part in [
        ("0-9", slice(0, 10)),
        ("10-", slice(10, None)),
        ("-5", slice(size - 5, None)),
        (f"5-{10 * size}", slice(5, None)),
    ]:
        answer = requests.get(url, headers={"range": f"bytes={asked}"})
        assert answer.status_code == 206 and answer.content == whole.content[part], asked
        assert answer.headers["content-range"].endswith(f"/{size}")
    for asked in ("bytes=9-5", "bytes=-", "lines=1-2", "bytes=0-1,3-4"):
        assert requests.get(url, headers={"range": asked}).content == whole.content
    beyond = requests.get(url, headers={"range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.json()["error"]["param"] == "range"
    assert int(requests.head(url).headers["content-length"]) == size


def test_a_running_job_reports_its_progress_and_can_be_cancelled(served):
    video_id = requests.post(f"{served}/v1/videos", json={"steps": 1000}).json()["id"]  # takes seconds
    waiting = requests.post(f"{served}/v1/videos", json={"steps": 999}).json()["id"]
    while (job := requests.get(f"{served}/v1/videos/{video_id}").json())["progress"] < 10:
        assert job["status"] in ("queued", "in_progress")
        time.sleep(0.01)
    for name in (waiting, video_id):
        assert requests.delete(f"{served}/v1/videos/{name}").json() == {
            "id": name,
            "object": "video.deleted",
            "deleted": True,
        }
        assert requests.get(f"{served}/v1/videos/{name}").status_code == 404
    assert make(served, steps=1)["status"] == "completed"


def test_a_full_queue_is_reported_with_the_time_to_come_again(served):
    accepted = []
    try:
        # no two jobs share a batch, and a job of so many steps takes far longer than forty requests
        for number in range(40):
            answer = requests.post(f"{served}/v1/videos", json={"steps": 1000 - number})
            if answer.status_code != 200:
                break
            accepted.append(answer.json()["id"])
        assert answer.status_code == 429 and len(accepted) >= 6
        assert int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["code"] == "queue_full"
        assert requests.get(f"{served}/healthz", timeout=60).status_code == 200  # while it samples
    finally:
        for video_id in accepted:
            requests.delete(f"{served}/v1/videos/{video_id}")


@pytest.mark.parametrize(
    ("method", "path", "said", "status", "param"),
    [
        ("POST", "/v1/videos", {"json": {"label": "thunder"}}, 400, "label"),
        ("POST", "/v1/videos", {"json": {"stepz": 1}}, 400, "stepz"),
        ("POST", "/v1/videos", {"json": {"task": "a2v"}}, 400, "input_reference"),
        (
            "POST",
            "/v1/videos",
            {"json": {"task": "a2v", "input_reference": {"image_url": "http://127.0.0.1/x"}}},
            400,
            "input_reference",
        ),
        (
            "POST",
            "/v1/videos",
            {"data": {"task": "v2a"}, "files": {"input_reference": ("x.mp4", b"no video")}},
            400,
            "input_reference",
        ),
        ("POST", "/v1/videos", {"files": {"sound": ("x.wav", b"")}}, 400, "sound"),
        ("POST", "/v1/videos", {"data": "{", "headers": {"content-type": "application/json"}}, 400, None),
        (
            "POST",
            "/v1/videos",
            {"data": "[" * 100_000, "headers": {"content-type": "application/json"}},
            400,
            None,
        ),
        (
            "POST",
            "/v1/videos",
            {"data": "--x", "headers": {"content-type": "multipart/form-data"}},
            400,
            None,
        ),
        (
            "POST",
            "/v1/videos",
            {"data": "prompt", "headers": {"content-type": "text/plain"}},
            415,
            "content-type",
        ),
        (
            "POST",
            "/v1/videos",
            {"data": b"x" * (2**20 + 1), "headers": {"content-type": "application/json"}},
            413,
            None,
        ),
        ("POST", "/v1/videos", {"json": {}, "headers": {"sec-fetch-site": "cross-site"}}, 403, None),
        ("POST", "/v1/videos?steps=3", {"json": {}}, 400, "steps"),
        ("PUT", "/v1/videos", {}, 405, None),
        ("GET", "/v1/videos?limit=0", {}, 400, "limit"),
        ("GET", "/v1/videos?order=up", {}, 400, "order"),
        ("GET", "/v1/videos?after=video_x", {}, 400, "after"),
        ("GET", "/v1/videos/video_x", {}, 404, "video_id"),
        ("GET", "/v1/videos/..%2F..%2Fetc/content", {}, 404, None),
        ("DELETE", "/v1/videos/video_x", {}, 404, "video_id"),
        ("GET", "/v1/models/sora-2", {}, 404, "model"),
        ("GET", "/page/..%2fservice.py", {}, 404, None),
        ("GET", "/nothing", {}, 404, None),
    ],
)
def test_refusals_are_json_that_names_the_field(served, method, path, said, status, param):
    answer = requests.request(method, served + path, **said)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert error["param"] == param and error["message"] and set(error) == {"message", "type", "param", "code"}


def test_a_body_without_a_stated_length_is_cut_off_at_the_limit(served):
    answer = requests.post(
        f"{served}/v1/videos",
        data=(b" " * 65_536 for _ in range(40)),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 413


def test_no_malformed_request_gives_a_500(served):
    randomness = random.Random(0)
    values = [
        None,
        True,
        -1,
        2**70,
        1e308,
        "",
        "rain",
        "\ud800",
        "\x00",
        [],
        {},
        [[1]],
        "9" * 5000,
        "NaN",
        {"image_url": 3},
    ]
    names = [
        "prompt",
        "label",
        "task",
        "seed",
        "steps",
        "solver",
        "schedule_shift",
        "guidance_scale",
        "guidance_interval",
        "num_windows",
        "span",
        "stream",
        "seconds",
        "size",
        "model",
        "input_reference",
        "\ud83d",
        "",
    ]
    statuses = set()
    for number in range(100):
        body = json.dumps(
            {randomness.choice(names): randomness.choice(values) for _ in range(randomness.randint(1, 3))}
        ).encode()
        if number % 3 == 0:
            body = bytearray(body)
            body[randomness.randrange(len(body))] = randomness.randrange(256)
        answer = requests.post(
            f"{served}/v1/videos", data=bytes(body), headers={"content-type": "application/json"}
        )
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            requests.delete(f"{served}/v1/videos/{answer.json()['id']}")
        else:
            assert answer.json()["error"]["message"]
    assert statuses <= {200, 400, 404} and 400 in statuses


def test_requests_are_answered_while_it_samples_and_decodes(served):
    """`test_busy.py` shows that none of this blocks the event loop; here it all goes on at once, on Ray."""
    big = encode_clip(make_clip(3, seconds=4.0, height=240, width=320))
    finished = make(served, steps=1)["id"]
    busy = requests.post(f"{served}/v1/videos", json={"steps": 200}).json()["id"]

    def upload():
        for _ in range(2):
            form = {"task": "v2a", "steps": "1"}
            file = {"input_reference": ("b.mp4", big)}
            taken = requests.post(f"{served}/v1/videos", data=form, files=file).json()["id"]
            assert requests.delete(f"{served}/v1/videos/{taken}").status_code == 200
            assert content(served, finished, variant="spectrogram").status_code == 200

    with ThreadPoolExecutor(1) as client:
        uploading = client.submit(upload)
        while not uploading.done():
            assert requests.get(f"{served}/v1/models", timeout=60).status_code == 200
    uploading.result()
    requests.delete(f"{served}/v1/videos/{busy}")


def test_the_schema_describes_the_fields(served):
    schema = requests.get(f"{served}/openapi.json").json()
    body = schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert {"prompt", "label", "task", "seed", "input_reference"} <= set(
        schema["components"]["schemas"]["VideoRequest"]["properties"]
    )
    assert schema["components"]["schemas"]["VideoForm"]["properties"]["input_reference"]["format"] == "binary"
    page = requests.get(f"{served}/docs")
    assert page.status_code == 200 and "guidance_scale" in page.text and "//cdn" not in page.text
