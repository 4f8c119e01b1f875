"""What the HTTP interface refuses, and in which words; a real port and a real sampler, without Ray."""

import time

import pytest
import requests

from proav.serve.settings import ServeSettings
from tests.media.hostile_files import switching_h264, wav
from tests.serve.conftest import Front


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


def own(front):
    """HOST:PORT of a front."""
    return front.url.removeprefix("http://")


def test_pages_of_other_sites_are_refused_by_their_origin(front):
    """Over plain http browsers leave Sec-Fetch-Site out; Origin they send with every POST and DELETE."""
    port = own(front).split(":")[1]
    foreign = ["null", "http://evil.example", f"http://evil.example:{port}", f"http://127.0.0.1:{int(port) + 1}", "http://127.0.0.1"]
    foreign += [f"http://{own(front)}.evil.example", f"http://evil.example/{own(front)}", f"http://x@{own(front)}", "file://", ""]
    for origin in foreign:
        for method, path in (("POST", "/v1/videos"), ("DELETE", "/v1/videos/video_x"), ("POST", "/nothing")):
            answer = requests.request(method, front.url + path, json={}, headers={"origin": origin})
            assert answer.status_code == 403 and error_of(answer)["code"] == "cross_site", (origin, method)
    assert requests.get(f"{front.url}/v1/videos").json()["data"] == []


def test_own_pages_and_clients_that_are_no_browsers_pass(front):
    port = own(front).split(":")[1]
    passing = [{}, {"origin": front.url}, {"origin": f"https://{own(front)}"}, {"origin": front.url.upper().replace("HTTP:", "http:")}]
    passing += [{"host": f"clips.lan:{port}", "origin": f"http://clips.lan:{port}"}, {"host": "clips.lan", "origin": "https://clips.lan"}]
    passing += [{"host": f"[::1]:{port}", "origin": f"http://[::1]:{port}"}, {"host": "clips.lan:80", "origin": "http://clips.lan"}]
    for headers in passing:
        answer = requests.post(f"{front.url}/v1/videos", json={"steps": 1}, headers=headers)
        assert answer.status_code == 200, (headers, answer.text)
        assert requests.delete(f"{front.url}/v1/videos/{answer.json()['id']}", headers=headers).status_code == 200
    assert requests.get(f"{front.url}/v1/models", headers={"origin": "http://evil.example"}).status_code == 200


def test_a_server_answers_to_its_own_names_alone(tiny_checkpoint, tiny_sampler, tmp_path):
    """Against DNS rebinding: a foreign name that leads here makes Origin and Host agree."""
    settings = {"checkpoint": tiny_checkpoint, "jobs_dir": str(tmp_path / "jobs"), "allowed_hosts": "Clips.lan, 127.0.0.1, [::1]"}
    with Front(ServeSettings.model_validate(settings), tiny_sampler) as front:
        for host in ("clips.lan", "CLIPS.lan:8000", "clips.lan.", own(front), "[::1]:8000"):
            assert requests.get(f"{front.url}/v1/models", headers={"host": host}).status_code == 200, host
        for host in ("evil.example", "clips.lan.evil.example", "127.0.0.2", "clips.lan@evil.example", ""):
            for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", "/v1/videos")):
                answer = requests.request(method, front.url + path, json={}, headers={"host": host, "origin": f"http://{host}"})
                assert answer.status_code == 403 and error_of(answer)["code"] == "wrong_host", (host, path)


def test_every_answer_forbids_frames_and_guessing_of_types(front):
    video_id = requests.post(f"{front.url}/v1/videos", json={"steps": 1}).json()["id"]
    while requests.get(f"{front.url}/v1/videos/{video_id}").json()["status"] != "completed":
        time.sleep(0.05)
    asked = [("GET", "/"), ("HEAD", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/page/script.js"), ("GET", "/v1/models")]
    asked += [("GET", f"/v1/videos/{video_id}/content"), ("GET", "/nothing"), ("PUT", "/v1/videos"), ("GET", "/v1/videos?after=x")]
    for method, path in asked:
        headers = requests.request(method, front.url + path).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'" and headers["x-content-type-options"] == "nosniff", path


def test_a_defect_is_told_in_json(front, monkeypatch):
    """Whatever fails inside, in a route or in a mounted folder: the answer has the form of every other error."""

    def broken(*_, **__):
        raise RuntimeError("a secret path")

    monkeypatch.setattr(front.service, "page", broken)
    answer = requests.get(f"{front.url}/v1/videos")
    assert answer.status_code == 500 and error_of(answer)["code"] == "server_error" and "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/%00", "/page/x%0a", "/page/" + "x" * 5000, "/page", "/v1", "/v1/videos/%ff/content", "//", "/v1/videos/", "/docs/x"):
        answer = requests.get(front.url + path)
        assert answer.status_code in (404, 405), (path, answer.text)
        error_of(answer)
