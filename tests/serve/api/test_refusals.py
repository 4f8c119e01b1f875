"""What the HTTP interface refuses, and in which words. The port and the sampler are real, without Ray."""

import time

import pytest
import requests

from proav.serve.settings import ServeSettings
from tests.media.hostile_files import switching_h264, wav
from tests.serve.conftest import Front


def error_of(answer):
    """The error of an answer, which must have the API's own form."""
    assert answer.headers["content-type"] == "application/json", answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/videos"), ("GET", "/videos"), ("GET", "/videos/video_x"), ("GET", "/models")],
)
def test_a_base_url_without_v1_is_reported(front, method, path):
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
def test_an_unknown_parameter_is_refused_with_the_known_ones(front, method, path, said):
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
    form, files = {"task": task}, {"input_reference": ("x", data)}
    answer = requests.post(f"{front.url}/v1/videos", data=form, files=files)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, code, "input_reference")


def own(front):
    """The HOST:PORT of a front."""
    return front.url.removeprefix("http://")


def test_pages_of_other_sites_are_refused_by_their_origin(front):
    """Over plain http browsers leave out Sec-Fetch-Site. They send Origin with every POST and DELETE."""
    port = own(front).split(":")[1]
    foreign = ["null", "", "file://", "http://127.0.0.1", f"http://127.0.0.1:{int(port) + 1}"]
    foreign += ["http://evil.example", f"http://evil.example:{port}", f"http://evil.example/{own(front)}"]
    foreign += [f"http://{own(front)}.evil.example", f"http://x@{own(front)}"]
    for origin in foreign:
        for method, path in (("POST", "/v1/videos"), ("DELETE", "/v1/videos/video_x"), ("POST", "/nothing")):
            answer = requests.request(method, front.url + path, json={}, headers={"origin": origin})
            assert answer.status_code == 403 and error_of(answer)["code"] == "cross_site", (origin, method)
    assert requests.get(f"{front.url}/v1/videos").json()["data"] == []


def test_own_pages_and_clients_that_are_no_browsers_pass(front):
    port = own(front).split(":")[1]
    passing = [{}, {"origin": front.url}, {"origin": f"https://{own(front)}"}]
    for host, origin in (
        (f"clips.lan:{port}", f"http://clips.lan:{port}"),
        ("Clips.LAN", "https://clips.lan"),
        ("clips.lan:80", "http://clips.lan"),
        (f"[::1]:{port}", f"http://[::1]:{port}"),
    ):
        passing.append({"host": host, "origin": origin})
    for headers in passing:
        answer = requests.post(f"{front.url}/v1/videos", json={"steps": 1}, headers=headers)
        assert answer.status_code == 200, (headers, answer.text)
        made = f"{front.url}/v1/videos/{answer.json()['id']}"
        assert requests.delete(made, headers=headers).status_code == 200
    foreign = {"origin": "http://evil.example"}
    assert requests.get(f"{front.url}/v1/models", headers=foreign).status_code == 200


def test_a_server_answers_to_its_own_names_alone(tiny_checkpoint, tiny_sampler, tmp_path):
    """This guards against DNS rebinding: if a foreign name leads here, Origin and Host agree."""
    settings = {"checkpoint": tiny_checkpoint, "jobs_dir": str(tmp_path / "jobs")}
    settings = ServeSettings.model_validate({**settings, "allowed_hosts": "Clips.lan, 127.0.0.1, [::1]"})
    with Front(settings, tiny_sampler) as front:
        for host in ("clips.lan", "CLIPS.lan:8000", "clips.lan.", own(front), "[::1]:8000"):
            assert requests.get(f"{front.url}/v1/models", headers={"host": host}).status_code == 200, host
        for host in ("evil.example", "clips.lan.evil.example", "127.0.0.2", "clips.lan@evil.example", ""):
            for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", "/v1/videos")):
                headers = {"host": host, "origin": f"http://{host}"}
                answer = requests.request(method, front.url + path, json={}, headers=headers)
                assert answer.status_code == 403 and error_of(answer)["code"] == "wrong_host", (host, path)
                assert "allowed_hosts lists the names that it answers to" in error_of(answer)["message"]


def test_every_answer_forbids_frames_and_guessing_of_types(front):
    video_id = requests.post(f"{front.url}/v1/videos", json={"steps": 1}).json()["id"]
    while requests.get(f"{front.url}/v1/videos/{video_id}").json()["status"] != "completed":
        time.sleep(0.05)
    asked = [("GET", path) for path in ("/", "/docs", "/openapi.json", "/page/script.js", "/v1/models")]
    asked += [("GET", path) for path in (f"/v1/videos/{video_id}/content", "/nothing", "/v1/videos?after=x")]
    for method, path in [*asked, ("HEAD", "/"), ("PUT", "/v1/videos")]:
        headers = requests.request(method, front.url + path).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'", path
        assert headers["x-content-type-options"] == "nosniff", path


def test_a_defect_is_reported_in_json(front, monkeypatch):
    """Whatever fails in a route or in a mounted folder, the answer has the form of other errors."""

    def broken(*_, **__):
        raise RuntimeError("a secret path")

    monkeypatch.setattr(front.service, "page", broken)
    answer = requests.get(f"{front.url}/v1/videos")
    assert answer.status_code == 500 and error_of(answer)["code"] == "server_error"
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    paths = ["/page/%00", "/page/x%0a", "/page/" + "x" * 5000, "/page", "/v1", "/v1/videos/", "//", "/docs/x"]
    for path in [*paths, "/v1/videos/%ff/content"]:
        answer = requests.get(front.url + path)
        assert answer.status_code in (404, 405), (path, answer.text)
        error_of(answer)
