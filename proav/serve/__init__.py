"""Serving a checkpoint over HTTP: `serve run proav.serve:app`.

Importing this module loads little. The application itself is in `on_ray/application.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def app(arguments: dict[str, Any]) -> "Application":
    """The application that `serve run proav.serve:app [key=value ...]` starts.

    arguments: values by key; the keys are those of `ServeSettings`. Raises StartError for a user's mistake.
    """
    from proav.serve.on_ray.application import build

    return build(arguments)
