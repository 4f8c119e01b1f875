"""What a server answers while it is at work. The port and the sampler are real, without Ray.

The work is held up, so that it lasts as long as a test looks at it.
"""

from concurrent.futures import ThreadPoolExecutor

import requests

from proav.serve.orders.previews import preview
from proav.serve.orders.references import read_given
from tests.media.hostile_files import h264
from tests.serve.api.test_http import make, wait_for
from tests.waiting import until


def test_requests_are_answered_while_it_samples_decodes_and_draws(front, tiny_sampler, halt, monkeypatch):
    """None of this blocks the event loop, which would then answer nobody."""
    jobs = f"{front.url}/v1/videos"
    clip = f"{jobs}/{make(front.url, steps=1)['id']}/content"
    halt.at_step(1, tiny_sampler, monkeypatch)
    for act in (read_given, preview):
        monkeypatch.setattr(f"proav.serve.queue.service.{act.__name__}", halt.before(act))
    form, film = {"task": "v2a", "steps": "1"}, h264(num_frames=40)
    requests.post(jobs, json={"steps": 2}, timeout=30)
    with ThreadPoolExecutor(2) as clients, halt:
        answers = [
            clients.submit(requests.post, jobs, data=form, files={"input_reference": ("film", film)}),
            clients.submit(requests.get, clip, params={"variant": "spectrogram"}),
        ]
        until(lambda: sorted(halt.arrived) == ["preview", "read_given", "sample"])
        assert requests.get(f"{front.url}/v1/models", timeout=30).status_code == 200
    assert [answer.result().status_code for answer in answers] == [200, 200]


def test_an_unfinished_job_says_how_far_it_is(front, tiny_sampler, halt, monkeypatch):
    halt.at_step(20, tiny_sampler, monkeypatch)
    jobs = f"{front.url}/v1/videos"
    running = requests.post(jobs, json={"steps": 200}).json()["id"]
    until(lambda: requests.get(f"{jobs}/{running}").json()["progress"] == 10)
    job = requests.get(f"{jobs}/{running}")
    assert job.json()["status"] == "in_progress" and int(job.headers["openai-poll-after-ms"]) > 0
    waiting = requests.post(jobs, json={"steps": 1}).json()
    assert (waiting["status"], waiting["queue_position"]) == ("queued", 0)
    for identity in (running, waiting["id"]):
        early = requests.get(f"{jobs}/{identity}/content")
        assert early.status_code == 409 and early.json()["error"]["code"] == "not_ready"
    halt.end()
    assert wait_for(front.url, waiting["id"])["status"] == "completed"
