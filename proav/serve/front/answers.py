"""Answers in JSON: what every address gives, errors included.

Which error it is, is decided where it is raised.
"""

import json
import math
from typing import Any

from fastapi.responses import Response

from proav.serve.front.api_error import ApiError


class Json(Response):
    """JSON in ASCII: what a client sent may hold characters that UTF-8 does not."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_answer(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """{"error": {message, type, param, code}} with the status of the error, never to be kept by a cache."""
    headers = {"cache-control": "no-store", **(headers or {})}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    if error.status == 409:
        headers["x-should-retry"] = "false"  # OpenAI's client would ask again at once
    return Json(error.to_json(), status_code=error.status, headers=headers)
