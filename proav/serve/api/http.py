"""The HTTP interface: OpenAI's Videos API with proav's fields, health, and the page.

It turns requests into calls of `Service` and back. Every answer that is not 2xx is JSON, {"error": {message,
type, param, code}}. Not here: `orders/requests.py` decides what a valid order is, `front/gate.py` who may ask
at all, and `front/arrival.py` how much may come.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from proav.serve.api.api_page import api_page
from proav.serve.api.openapi import describe
from proav.serve.front.answers import Json, error_answer
from proav.serve.front.api_error import ApiError, shown
from proav.serve.front.arrival import WholeRequests
from proav.serve.front.gate import Gate
from proav.serve.orders.requests import check_names
from proav.serve.queue.service import Service

PAGE = Path(__file__).parent / "page"
MAX_FORM_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
REMIX = re.compile(r"(/v1)?/+videos/[^/]*/remix/?")
"""An address that OpenAI's clients know. Without a hint, users would look for a mistake of their own."""


def http_app(service: Service) -> FastAPI:
    """The ASGI application of one service. It starts and stops the service."""

    @contextlib.asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="proav",
        lifespan=lifespan,
        default_response_class=Json,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    settings = service.settings
    app.add_middleware(Gate, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(WholeRequests, limits=settings.limits, in_proxy=False)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_videos(app, service)
    _add_models(app, service)
    _add_pages(app, service)
    describe(app)
    return app


def _add_videos(app: FastAPI, service: Service) -> None:
    @app.post("/v1/videos", summary="Make a clip")
    async def create(request: Request) -> Response:
        """Queues a clip and answers with its job at once."""
        check_names(parameters(request), ())
        fields, upload = await read_body(request)
        return job_answer(await service.create(fields, upload))

    @app.get("/v1/videos", summary="List jobs")
    async def page(request: Request) -> Response:
        """Jobs by time of creation, newest first unless order=asc. after=ID begins after that job."""
        query = request.query_params
        check_names(parameters(request), ("limit", "after", "order"))
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"order={shown(order)}: expected asc or desc", param="order")
        limit = query.get("limit", str(DEFAULT_LIMIT))
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
            raise ApiError(400, f"limit={shown(limit)}: expected 1 to {MAX_LIMIT}", param="limit")
        jobs, has_more = service.page(
            limit=int(limit), after=query.get("after"), newest_first=order == "desc"
        )
        data = [service.describe(job) for job in jobs]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return Json({"object": "list", "data": data, **ends, "has_more": has_more})

    @app.get("/v1/videos/{video_id}", summary="Look at a job")
    async def retrieve(video_id: str, request: Request) -> Response:
        """Its status (queued, in_progress, completed, failed), its progress from 0 to 100, and its error."""
        check_names(parameters(request), ())
        return job_answer(service.get(video_id))

    @app.delete("/v1/videos/{video_id}", summary="Cancel or remove")
    async def delete(video_id: str, request: Request) -> Response:
        """Cancels a job that waits or runs; removes a finished one with its clip."""
        check_names(parameters(request), ())
        await service.delete(video_id)
        return Json({"id": video_id, "object": "video.deleted", "deleted": True})

    @app.head("/v1/videos/{video_id}/content", include_in_schema=False)
    @app.get("/v1/videos/{video_id}/content", summary="The clip or a preview")
    async def content(video_id: str, request: Request) -> Response:
        """variant=video: the mp4, whole or by Range. Or thumbnail, spritesheet (JPEG), spectrogram (PNG)."""
        check_names(parameters(request), ("variant",))
        data, media_type = await service.content(video_id, request.query_params.get("variant", "video"))
        return ranged(data, media_type, request.headers.get("range"))

    def job_answer(job) -> Response:
        after = max(1, round(1000 * service.dispatcher.poll_after_seconds()))
        return Json(
            service.describe(job), headers={"openai-poll-after-ms": str(after), "cache-control": "no-store"}
        )


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", summary="List models")
    async def models() -> Response:
        """The model that is served, with its labels, sizes and defaults."""
        return Json({"object": "list", "data": [service.card.to_json()]})

    @app.get("/v1/models/{model_id}", summary="Look at a model")
    async def model(model_id: str) -> Response:
        """Its labels, tasks, size, length, rates, and the defaults and limits of a request."""
        if model_id != service.card.id:
            raise ApiError(
                404,
                f"model {shown(model_id)} is not served here; expected {service.card.id}",
                param="model",
                code="model_not_found",
            )
        return Json(service.card.to_json())

    @app.get("/healthz", summary="Health")
    async def healthz() -> Response:
        """200 only if a sampler has made progress recently, or samples a step now; else 503."""
        healthy, reason = await service.health()
        if not healthy:
            raise ApiError(
                503, reason, code="no_sampler", retry_after_seconds=service.settings.health_seconds
            )
        return Json(
            {"status": "ok", "reason": reason, "queued": len(service.dispatcher.queue)},
            headers={"cache-control": "no-store"},
        )


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        label = json.dumps(service.card.labels[0] if service.card.labels else "")
        return HTMLResponse(api_page(app.openapi(), url=str(request.base_url).rstrip("/"), label=label))

    app.mount("/page", PageFiles(directory=PAGE))


class PageFiles(StaticFiles):
    """The page's scripts and styles.

    Browsers ask each time whether they have changed, because a newer server comes with a newer page. They
    ask by ETag, which is cheap.
    """

    def file_response(self, *arguments, **settings) -> Response:
        response = super().file_response(*arguments, **settings)
        response.headers["cache-control"] = "no-cache"
        return response


def parameters(request: Request) -> list[str]:
    """Names of the query parameters; a name that is given twice comes twice."""
    return [name for name, _ in request.query_params.multi_items()]


async def read_body(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """(fields, file) of a JSON or form body; file: the bytes of input_reference, None if it is no file.

    Raises ApiError 400 or 415.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type == "application/json":
        try:
            fields = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise ApiError(
                400, f"the body is no valid JSON ({str(error)[:100]})", code="invalid_json"
            ) from error
        if not isinstance(fields, dict):
            raise ApiError(
                400,
                f'the body is {shown(fields)}; expected a JSON object such as {{"prompt": ""}}',
                code="invalid_json",
            )
        return fields, None
    if media_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        expected = "expected application/json or multipart/form-data"
        raise ApiError(
            415,
            f"content-type {shown(media_type)}; {expected}",
            param="content-type",
            code="unsupported_media_type",
        )
    fields, upload = {}, None
    async with request.form(max_files=1, max_fields=MAX_FORM_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        for name, value in form.multi_items():
            if name in fields or (name == "input_reference" and upload is not None):
                raise ApiError(400, f"{shown(name)} is given twice; expected once", param=name)
            if isinstance(value, UploadFile):
                if name != "input_reference":
                    raise ApiError(400, f"{shown(name)} is a file; only input_reference is", param=name)
                upload = await value.read()
            elif name == "input_reference[image_url]":
                fields["input_reference"] = {"image_url": value}
            elif value or name == "prompt":  # an empty form field is one that was left empty
                fields[name] = value
    if upload is not None and "input_reference" in fields:
        raise ApiError(
            400,
            "input_reference is given as a file and as text; expected one of them",
            param="input_reference",
        )
    return fields, upload


def ranged(data: bytes, media_type: str, range_header: str | None) -> Response:
    """All bytes, or the one range of them that is asked for (RFC 9110, 14). Browsers need ranges to seek.

    range_header: value of the header Range. If it is not one range of bytes, the answer has all bytes.
    Returns status 200, 206 for a range, or 416 for a range outside the file.
    """
    headers = {"accept-ranges": "bytes", "cache-control": "private, max-age=86400, immutable"}
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", range_header or "")
    if not match or match.groups() == ("", ""):
        return Response(data, media_type=media_type, headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start > end:
        if first and last and int(last) < int(first):  # not a range at all
            return Response(data, media_type=media_type, headers=headers)
        error = ApiError(
            416,
            f"range {range_header}: the file has {len(data)} bytes",
            param="range",
            code="range_not_satisfiable",
        )
        return Json(error.to_json(), status_code=416, headers={"content-range": f"bytes */{len(data)}"})
    headers["content-range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], status_code=206, media_type=media_type, headers=headers)


async def _api_error(_: Request, error: ApiError) -> Response:
    return error_answer(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """The answer to what the framework refuses: an unknown path, a wrong method, an unreadable form."""
    codes = {404: "not_found", 405: "method_not_allowed"}
    path = request.url.path
    said = {
        404: f"there is nothing at {shown(path)}{_hint(path)}",
        405: f"{request.method} is not offered at {shown(path)}",
    }
    api_error = ApiError(
        error.status_code,
        said.get(error.status_code, str(error.detail)),
        code=codes.get(error.status_code, "invalid_request"),
    )
    return error_answer(api_error, dict(error.headers or {}))


def _hint(path: str) -> str:
    """A hint at what the client may have meant by a path that does not exist."""
    if REMIX.fullmatch(path):
        return "; remix is not offered: send POST /v1/videos with another label or seed instead"
    if re.fullmatch(r"/+(videos|models)(/.*)?", path, re.DOTALL):
        example = "http://127.0.0.1:8000/v1"
        return f"; the addresses here begin with /v1: write a base URL that ends so, such as {example}"
    return "; the addresses of this server are listed at /docs" if path.startswith("/v1") else ""
