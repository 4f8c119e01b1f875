"""`ApiError`: an error that a client gets as the answer to its request.

The code that raises it decides which error it is. Not here: how it is sent (`answers.py`).
"""

from typing import Any

from proav.serve.front.raw_answers import error_object

SHOWN_CHARACTERS = 60
"""Most characters of a client's value that a message repeats."""


class ApiError(Exception):
    """An error for a client: {"error": {message, type, param, code}} with a status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        retry_after_seconds: float | None = None,
    ) -> None:
        """status: HTTP status of the answer.

        message: what was given and what was expected, for people.
        param: name of the field that is wrong; None if no field is the cause.
        code: a short stable word for programs.
        retry_after_seconds: when the client may ask again; None: unknown.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_seconds = retry_after_seconds

    def to_json(self) -> dict:
        return error_object(self.status, self.message, param=self.param, code=self.code)


def shown(value: Any) -> str:
    """A client's value, short enough to be repeated in a message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
