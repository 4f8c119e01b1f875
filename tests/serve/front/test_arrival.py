"""Clients that do not finish their requests get an error and are disconnected; others are answered. The port
is real, without Ray."""

import contextlib
import http.client
import json
import select
import socket
import time

import pytest
import requests

from proav.serve.front import arrival, connections
from proav.serve.front.arrival import Limits
from proav.serve.settings import ServeSettings
from tests.serve.conftest import Front

POST = b"POST /v1/videos HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
QUICK = {"head_seconds": 1.5, "pause_seconds": 1.0, "arrival_seconds": 60.0, "max_upload_bytes": 300_000}


@pytest.fixture
def front(tiny_checkpoint, tiny_sampler, tmp_path, monkeypatch, request):
    """A server with short limits, also for its connections. A test may give other limits by `limited`."""
    limits = QUICK | {"max_arriving_bytes": 400_000, "max_connections": 200} | getattr(request, "param", {})
    settings = ServeSettings(checkpoint=tiny_checkpoint, jobs_dir=str(tmp_path / "jobs"), **limits)
    monkeypatch.setattr(connections, "PROXY_LIMITS", settings.limits)
    monkeypatch.setattr(arrival, "LINGER_SECONDS", 60.0)  # a client that closes ends it
    with Front(settings, tiny_sampler) as front:
        yield front


def limited(**limits):
    return pytest.mark.parametrize("front", [limits], indirect=True, ids=[""])


class Client:
    """A connection of its own, on which a test sends bytes as it likes."""

    def __init__(self, front, data: bytes) -> None:
        host, port = front.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=15)
        self.began = time.monotonic()
        self.socket.sendall(data)

    def fileno(self) -> int:
        return self.socket.fileno()

    def answer(self) -> tuple[int | None, dict | None, float]:
        """(status, error, seconds). Status and error are None if the server closes without an answer."""
        answer = http.client.HTTPResponse(self.socket)
        try:
            answer.begin()
        except http.client.RemoteDisconnected:
            return None, None, time.monotonic() - self.began
        error = json.loads(answer.read())["error"]
        seconds = time.monotonic() - self.began
        self.socket.close()
        assert (answer.headers["content-type"], answer.headers["connection"]) == ("application/json", "close")
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return answer.status, error, seconds


def unfinished(front, *, length, sent):
    return Client(front, POST + b"Content-Length: %d\r\n\r\n" % length + b" " * sent)


def test_a_body_that_does_not_go_on_is_reported_and_let_go(front):
    status, error, seconds = unfinished(front, length=100, sent=10).answer()
    assert (status, error["code"]) == (408, "timeout") and "within 1 s" in error["message"]
    assert seconds > 0.9


@limited(pause_seconds=60.0, arrival_seconds=2.5)
def test_a_body_that_drips_is_reported_when_its_time_is_over(front):
    client = unfinished(front, length=100, sent=0)
    for _ in range(100):  # if each byte gave it time anew, the body would arrive whole
        client.socket.sendall(b" ")
        if select.select([client], [], [], 0.3)[0]:
            break
    for _ in range(3):  # what it sends after the answer is still read: else the answer could be lost
        client.socket.sendall(b" ")
        time.sleep(0.1)
    status, error, seconds = client.answer()
    assert status == 408 and "2.5 s" in error["message"] and seconds > 2.4


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", POST + b"X: " + b"x" * 1000])
def test_a_head_that_does_not_end_is_reported(front, sent):
    status, error, seconds = Client(front, sent).answer()
    assert (status, error["code"]) == (408, "timeout") and "head" in error["message"] and seconds > 1.4


def test_a_second_head_on_a_connection_must_end_too(front):
    client = Client(front, b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
    first = client.socket.recv(65536)
    assert first.startswith(b"HTTP/1.1 200")
    time.sleep(0.2)
    client.began = time.monotonic()
    client.socket.sendall(b"GET /v1/mod")
    status, error, seconds = client.answer()
    assert status == 408 and seconds > 1.4


def test_a_silent_connection_is_closed_without_a_word(front):
    assert Client(front, b"").answer()[:2] == (None, None)


def test_a_head_without_end_is_refused_while_it_grows(front, monkeypatch):
    client = Client(front, POST)
    with pytest.raises(OSError):  # broken off, since it does not end
        while time.monotonic() - client.began < 60:
            client.socket.sendall(b"X: " + b"x" * 20_000 + b"\r\n")
            time.sleep(0.05)
    assert requests.get(f"{front.url}/v1/models").status_code == 200
    monkeypatch.setattr(connections, "LINGER_SECONDS", 60.0)  # until all is read: else the answer is lost
    client = Client(front, POST + b"".join(b"X%d: y\r\n" % number for number in range(20_000)))
    status, error, _ = client.answer()
    assert (status, error["code"]) == (431, "head_too_large")


def test_what_is_no_http_is_reported_like_every_other_error(front):
    for sent in (b"hello\r\n\r\n", b"GET  HTTP/9\r\n\r\n", POST + b"Content-Length: x\r\n\r\n"):
        status, error, _ = Client(front, sent).answer()
        assert (status, error["code"], error["type"]) == (400, "invalid_request", "invalid_request_error")


def test_a_body_that_is_too_large_is_refused_at_once_or_when_it_is(front):
    status, error, _ = unfinished(front, length=10**9, sent=10).answer()
    assert (status, error["code"]) == (413, "too_large")
    chunk = b"%x\r\n" % 100_000 + b" " * 100_000 + b"\r\n"
    answer = requests.post(f"{front.url}/v1/videos", data=(chunk for _ in range(4)))
    assert answer.status_code == 413


@limited(pause_seconds=60.0)
def test_small_requests_pass_while_large_bodies_fill_the_memory(front):
    """All bodies share 400,000 bytes. The first 64 KiB of each body do not count."""
    clients = [unfinished(front, length=290_000, sent=280_000) for _ in range(3)]
    for _ in range(2):
        refused = select.select(clients, [], [], 15)[0][0]
        clients.remove(refused)
        status, error, _ = refused.answer()
        assert (status, error["code"]) == (503, "too_busy")
    assert requests.post(f"{front.url}/v1/videos", json={"steps": 1}).status_code == 200
    (held,) = clients
    assert not select.select([held], [], [], 0)[0]
    held.socket.close()
    body = json.dumps({"steps": 1}) + " " * 280_000
    headers, began = {"content-type": "application/json"}, time.monotonic()
    while (made := requests.post(f"{front.url}/v1/videos", data=body, headers=headers)).status_code != 200:
        assert made.status_code == 503 and time.monotonic() - began < 30  # the memory gets free again
        time.sleep(0.05)


def test_a_thousand_that_never_finish_keep_nobody_out(front, monkeypatch):
    monkeypatch.setattr(connections.PROXY_LIMITS, "max_connections", 2000)
    clients = [unfinished(front, length=100, sent=10) for _ in range(250)]
    clients += [Client(front, POST) for _ in range(250)]
    began = time.monotonic()
    assert requests.get(f"{front.url}/healthz").status_code == 200
    assert requests.post(f"{front.url}/v1/videos", json={"steps": 1}).status_code == 200
    assert time.monotonic() - began < 30
    assert {client.answer()[0] for client in clients} == {408}


def test_connections_beyond_the_limit_are_reported(front, monkeypatch):
    monkeypatch.setattr(connections.PROXY_LIMITS, "max_connections", 3)
    monkeypatch.setattr(connections.PROXY_LIMITS, "head_seconds", 60.0)
    clients = [Client(front, b"G") for _ in range(3)]
    status, error, _ = Client(front, b"").answer()
    assert (status, error["code"]) == (503, "too_busy")
    monkeypatch.setattr(connections.PROXY_LIMITS, "head_seconds", 0.5)
    assert [client.answer()[0] for client in clients] == [408] * 3
    assert requests.get(f"{front.url}/v1/models").status_code == 200


def test_an_answer_that_nobody_reads_is_broken_off(front, monkeypatch):
    monkeypatch.setattr(connections.PROXY_LIMITS, "pause_seconds", 60.0)
    open_connections = front._server.server_state.connections
    client = Client(front, b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n" * 1000)
    while not open_connections:
        assert time.monotonic() - client.began < 30
        time.sleep(0.01)
    monkeypatch.setattr(connections.PROXY_LIMITS, "pause_seconds", 0.5)
    while open_connections:
        assert time.monotonic() - client.began < 60
        time.sleep(0.1)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.socket.recv(2**20):
            received += part
    assert 0 < received.count(b"HTTP/1.1 200") < 1000


def test_limits_travel_from_the_application_to_the_proxy():
    mine, theirs = Limits(), Limits(pause_seconds=3.5, max_upload_bytes=7)
    mine.take(theirs.to_header())
    assert mine == theirs
