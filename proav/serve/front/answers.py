"""Answers of the application in JSON, errors included.

The code that raises an error decides which one it is. Not here: errors of Ray Serve's proxy
(`raw_answers.py`).
"""

import json
import math
from typing import Any

from fastapi.responses import Response

from proav.serve.front.api_error import ApiError


class Json(Response):
    """JSON in ASCII: text that a client sent may hold characters that UTF-8 cannot encode."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_answer(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """{"error": {message, type, param, code}} with the status of the error; caches must not keep it."""
    headers = {"cache-control": "no-store", **(headers or {})}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    if error.status == 409:
        headers["x-should-retry"] = "false"  # otherwise OpenAI's client asks again at once
    return Json(error.to_json(), status_code=error.status, headers=headers)
