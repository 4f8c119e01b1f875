"""What the HTTP interface refuses, and in which words; a real port and a real sampler, without Ray."""

import pytest
import requests

from tests.media.hostile_files import switching_h264, wav


def error_of(answer):
    """The error of an answer in the API's own form."""
    assert answer.headers["content-type"] == "application/json", answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(("method", "path"), [("POST", "/videos"), ("GET", "/videos"), ("GET", "/videos/video_x"), ("GET", "/models")])
def test_a_base_url_without_v1_is_told(front, method, path):
    answer = requests.request(method, front.url + path, json={} if method == "POST" else None)
    assert answer.status_code == 404 and "/v1" in error_of(answer)["message"]


def test_remix_is_said_not_to_be_offered(front):
    for path in ("/v1/videos/video_x/remix", "/videos/video_x/remix"):
        answer = requests.post(front.url + path, json={"prompt": "rain"})
        assert answer.status_code == 404 and "remix is not offered" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "/v1/videos", "takes none"),
        ("GET", "/v1/videos", "expected some of limit, after, order"),
        ("GET", "/v1/videos/video_x", "takes none"),
        ("GET", "/v1/videos/video_x/content", "expected some of variant"),
        ("DELETE", "/v1/videos/video_x", "takes none"),
    ],
)
def test_an_unknown_parameter_is_told_which_are_known(front, method, path, said):
    answer = requests.request(method, f"{front.url}{path}?page=2", json={} if method == "POST" else None)
    assert answer.status_code == 400 and error_of(answer)["param"] == "page"
    assert said in error_of(answer)["message"] and not error_of(answer)["message"].rstrip().endswith("of")


@pytest.mark.parametrize(
    ("task", "data", "code"),
    [
        ("a2v", wav(0.6, stated_rate=1), "bad_rate"),
        ("a2v", wav(0.6, stated_rate=2**31 - 1), "bad_rate"),
        ("v2a", switching_h264(width=16_000, height=8_000), "too_large"),
    ],
)
def test_files_that_lie_about_themselves_are_a_clients_mistake(front, task, data, code):
    answer = requests.post(f"{front.url}/v1/videos", data={"task": task}, files={"input_reference": ("x", data)})
    assert answer.status_code == 400 and error_of(answer)["code"] == code and error_of(answer)["param"] == "input_reference"
