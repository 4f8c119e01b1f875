"""Ray Serve's own plain answers become JSON; those of the application pass as they are."""

import asyncio
import json
from http import HTTPStatus

import pytest
from starlette.responses import FileResponse

from proav.serve.front.proxy import JsonErrors

TEXT = [(b"content-type", b"text/plain; charset=utf-8")]


def answer_of(app, path="/v1/videos", asked=()):
    """(status, headers, body) of what the wrapped application sends."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": list(asked)}
    asyncio.run(JsonErrors(app)(scope, None, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body


def saying(status, *parts, headers=TEXT):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def silent(scope, receive, send):
    """Answers nothing, as Ray's proxy does after a replica was lost."""


async def failing(scope, receive, send):
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("app", "status", "code"),
    [
        (saying(404, b"Path '/' not found. ", b"Ping http://.../-/routes"), 404, "not_found"),
        (saying(503, b"Deployment is ", b"unavailable\nTraceback"), 503, "no_server"),
        (saying(408, b""), 408, "timeout"),
        (saying(429, b"x" * 10_000, headers=[]), 429, "queue_full"),
        (silent, 500, "server_error"),
        (failing, 500, "server_error"),
    ],
)
def test_plain_errors_become_json(app, status, code):
    told, headers, body = answer_of(app)
    error = json.loads(body)["error"]
    assert (told, error["code"], error["param"]) == (status, code, None) and 0 < len(error["message"]) <= 500
    assert "Traceback" not in error["message"] and "secret" not in error["message"]
    assert headers[b"content-type"] == b"application/json" and int(headers[b"content-length"]) == len(body)
    assert (b"retry-after" in headers) == (status in (429, 503))
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    ("asked", "status", "said", "kept"),
    [
        (b"bytes=99999999-", 416, HTTPStatus(416).phrase, b"bytes */7"),
        (b"pages=1-2", 400, "Only support bytes range", None),
    ],
)
def test_a_range_that_a_file_does_not_have_is_the_clients_mistake(tmp_path, asked, status, said, kept):
    (tmp_path / "index.html").write_text("a page.")
    file = FileResponse(tmp_path / "index.html")
    told, headers, body = answer_of(file, path="/", asked=[(b"range", asked)])
    error = json.loads(body)["error"]
    assert (told, error["code"], error["type"]) == (status, "invalid_request", "invalid_request_error")
    assert error["message"] == said and headers.get(b"content-range") == kept
    assert headers[b"content-type"] == b"application/json"


def test_a_plain_refusal_of_unknown_status_is_the_clients_mistake():
    told, _, body = answer_of(saying(499, b""))
    error = json.loads(body)["error"]
    assert (told, error["code"], error["message"]) == (499, "invalid_request", "the request was refused")


def test_all_else_passes_as_it_is():
    json_type = [(b"content-type", b"application/json")]
    assert answer_of(saying(400, b"{}", headers=json_type)) == (400, dict(json_type), b"{}")
    assert answer_of(saying(200, b"a", b"b")) == (200, dict(TEXT), b"ab")
    assert answer_of(saying(503, b"UNHEALTHY"), path="/-/healthz") == (503, dict(TEXT), b"UNHEALTHY")
