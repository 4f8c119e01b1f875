"""The server as a process: mistakes at the start, lost samplers and a lost ingress."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.media.hostile_files import h264
from tests.serve.api.test_http import make, wait_for
from tests.serve.conftest import ROOT, free_port
from tests.tiny import save_tiny_mdsa, tiny_config

pytestmark = pytest.mark.ray


def replica(server, name):
    """The process of a replica of this server, once there is one."""
    deadline = time.monotonic() + 60
    while len(found := replicas(server, name)) != 1:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found[0]


def replicas(server, name):
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        words = command_line(process)
        if words.startswith("ray::ServeReplica") and f":{name}" in words:
            found.append(process)
    return found


def command_line(process):
    """Empty if the process has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def has_ended(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def job_in_progress(served, steps):
    """A job that is being made. One that ends before it was seen in progress is followed by another."""
    while True:
        job = requests.post(f"{served}/v1/videos", json={"steps": steps, "seed": 1}).json()
        while job["status"] == "queued":
            time.sleep(0.02)
            job = requests.get(f"{served}/v1/videos/{job['id']}").json()
        if job["status"] == "in_progress":
            return job
        assert job["status"] == "completed", job


def start_words(*words):
    serve = Path(sys.executable).parent / "serve"
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    command = [serve, "run", "proav.serve:app", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def test_a_lost_sampler_is_replaced_and_its_job_made(served, server):
    lost = replica(server, "Sampler")
    job = job_in_progress(served, steps=400)
    lost.send_signal(signal.SIGKILL)
    lost.wait(60)
    assert wait_for(served, job["id"], seconds=120)["status"] == "completed"
    assert replica(server, "Sampler").pid != lost.pid and requests.get(f"{served}/healthz").status_code == 200


def test_a_frozen_sampler_is_reported_and_replaced_and_its_job_made(served, server):
    """frozen_seconds is 6 here. Ray Serve alone needs three time-outs to notice a frozen process, and a
    fourth to end it."""
    frozen = replica(server, "Sampler")
    job = job_in_progress(served, steps=1000)
    assert requests.get(f"{served}/healthz").status_code == 200
    began = time.monotonic()
    frozen.send_signal(signal.SIGSTOP)
    while not has_ended(frozen):
        health = requests.get(f"{served}/healthz", timeout=60)
        assert health.status_code == 200 or health.json()["error"]["code"] == "no_sampler"
        assert time.monotonic() - began < 30
        time.sleep(0.1)
    assert wait_for(served, job["id"], seconds=120)["status"] == "completed"
    print(f"finished {time.monotonic() - began:.1f} s after SIGSTOP")
    assert has_ended(frozen) and replica(server, "Sampler").pid != frozen.pid
    assert requests.get(f"{served}/healthz", timeout=60).status_code == 200


def test_a_lost_ingress_comes_back_with_its_jobs(served, server):
    finished = make(served, steps=1, label="rain")
    waiting = requests.post(f"{served}/v1/videos", json={"steps": 150}).json()["id"]
    replica(server, "Front").send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while True:
        try:
            found = requests.get(f"{served}/v1/videos/{finished['id']}", timeout=10)
            if found.status_code == 200:
                break
        except requests.RequestException:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found.json() == finished
    assert wait_for(served, waiting, seconds=120)["status"] == "completed"


def decodes_an_upload(front):
    return any("upload_process" in command_line(child) for child in front.children())


def answer_of_a_killed_ingress(served, server, **form):
    """The answer to an upload that the ingress was decoding when it was killed."""
    for _ in range(5):
        front = replica(server, "Front")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(requests.post, f"{served}/v1/videos", **form, timeout=120)
            while not asked.done() and not decodes_an_upload(front):
                time.sleep(0.01)
            if asked.done():
                continue
            front.send_signal(signal.SIGKILL)
            front.wait(60)
        if asked.result().status_code != 200:  # else it was answered just before
            return asked.result()
    raise AssertionError("each upload was answered before the ingress was killed")


def test_a_request_that_the_ingress_takes_with_it_is_answered_in_json(served, server):
    """The proxy of Ray Serve then answers. Without proav's code it would answer in plain text."""
    slow = h264(num_frames=36, width=4096, height=2160)
    form = {"data": {"task": "v2a"}, "files": {"input_reference": ("slow.h264", slow)}}
    answer = answer_of_a_killed_ingress(served, server, **form)
    assert answer.status_code >= 500 and answer.headers["content-type"] == "application/json", answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert requests.get(f"{served}/v1/models", timeout=120).status_code == 200


def test_rays_proxy_answers_slow_clients_within_the_settings_of_the_server(served):
    """The limits are settings of the application, which sends them to the proxy with its answers."""
    requests.get(f"{served}/v1/models").raise_for_status()
    host, port = served.removeprefix("http://").split(":")
    head = f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for sent, said in [(head, "head of the request"), (f"{head}Content-Length: 9\r\n\r\n{{", "within 5 s")]:
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            began = time.monotonic()
            connection.sendall(sent.encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            error = json.loads(answer.read())["error"]
        assert answer.status == 408 and said in error["message"] and 3.9 < time.monotonic() - began < 40
        assert "x-proav-limits" not in answer.headers
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 400 and json.loads(answer.read())["error"]["code"] == "invalid_request"
    large = requests.post(f"{served}/v1/videos", data=b" " * (2**20 + 1), timeout=60)
    assert large.status_code == 413 and large.json()["error"]["code"] == "too_large"


def test_mistakes_at_the_start_are_reported_in_a_line(server, tmp_path, tiny_checkpoint):
    mdsa = save_tiny_mdsa(str(tmp_path), tiny_config())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = [
            ([f"checkpoint={mdsa}"], "is a checkpoint of mdsa, expected one of stdit"),
            (
                [f"checkpoint={tiny_checkpoint}", f"jobs_dir={tmp_path}/jobs", f"port={port}"],
                f"cannot listen on 127.0.0.1:{port}",
            ),
            (
                [f"checkpoint={tiny_checkpoint}", f"jobs_dir={server.folder}/jobs", f"port={free_port()}"],
                f"is in use by another server (process {replica(server, 'Front').pid} on host ",
            ),
        ]
        with ThreadPoolExecutor(len(cases)) as pool:
            starts = list(pool.map(lambda case: start_words(*case[0]), cases))
        for (_, said), done in zip(cases, starts, strict=True):
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode == 2 and len(lines) == 1 and said in lines[0], done.stderr
            assert "Traceback" not in done.stdout + done.stderr
