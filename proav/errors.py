"""The exceptions that mean "the user can fix this", storage that failed, and an ordered stop.

Jobs print the message of a UserError on stderr in one or two lines and exit with status 2. The message of
StorageUnavailable and Stopped is printed in the same way, with status 1. Everything else is a defect and
keeps its traceback.
"""

import json
from typing import NoReturn


class UserError(Exception):
    """A mistake of the user's: the message says what was given, what was expected and what to type."""


class ConfigError(UserError):
    """A configuration that cannot be run: an unknown key, a value out of range, or a contradiction."""


class MediaError(UserError):
    """A file that cannot become a clip; `reason` is a short stable word for tables."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):  # two arguments, so that the error can be pickled on its way from a Ray worker
        return MediaError, (self.reason, str(self))


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, damaged or made for another configuration."""


class StorageUnavailable(Exception):
    """Storage that failed for longer than job.retry_seconds: nobody's mistake, and a restart may mend it."""


class Stopped(KeyboardInterrupt):
    """The job was asked to end and has ended in order; the message says what was kept and how to go on."""


TOLD = (UserError, StorageUnavailable)
"""Errors for which the message is enough, without a traceback. Tasks and actors return them as text, because
Ray wraps exceptions."""


def to_text(error: Exception) -> str:
    """One of TOLD as the text that `raise_from_text` takes."""
    return json.dumps([isinstance(error, StorageUnavailable), str(error)])


def raise_from_text(text: str) -> NoReturn:
    """Raises the StorageUnavailable or UserError that `to_text` made into text."""
    is_passing, message = json.loads(text)
    raise (StorageUnavailable if is_passing else UserError)(message)
