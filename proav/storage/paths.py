"""What relative paths in settings are relative to, and the explanation if nothing is at a path.

Paths of a user's own files (videos, listings, weights) are relative to the current folder, also in a YAML
file. Paths of a run's output (run_dir, and settings that name the output of another run) are relative to the
runs folder, $PROAV_RUNS.
"""

import glob
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from proav import storage
from proav.config import Config
from proav.config.clip import VECTOR_FILES

GIVEN = (
    "data.sources", "data.listing", "data.videos", "data.ontology", "data.vectors",
    "mdsa.loss.perceptual_weights", "generate.listing", "evaluate.real", "evaluate.fake", "evaluate.weights",
    "evaluate.compare_with",
)  # fmt: skip
"""Settings that name a user's own files: one path, a list of paths, or a mapping in which some values are
files."""
LEFT = (
    "run_dir", "data.prepared", "generate.checkpoint", "mdsa.init_from", "stdit.init_from", "distill.teacher",
)  # fmt: skip
"""Settings that name the output of runs."""


def with_absolute_paths(config: Config, *, runs: str = ".") -> Config:
    """The same configuration with local paths made absolute: Ray's workers may have another current folder.

    runs: the folder or URI to which the paths of runs' output are relative.
    """

    def below_runs(path: str) -> str:
        if storage.is_remote(path) or os.path.isabs(path.removeprefix("file://")):
            return _absolute(path)
        return (
            storage.join(runs, path) if storage.is_remote(runs) else os.path.abspath(os.path.join(runs, path))
        )

    config = config.model_copy(update={"run_dir": config.run_folder})
    for key in GIVEN:
        config = _changed(config, key.split("."), _absolute)
    for key in LEFT:
        config = _changed(config, key.split("."), below_runs)
    return config


def explain_paths(message: str, config: Config, *, runs: str = ".", config_file: str | None = None) -> str:
    """`message`, with a clause for each path in it that is missing and that was relative in `config`.

    The clause says what the setting is relative to and what to type.

    message: an error's text, with absolute paths.
    config: as it was read, with relative paths.
    runs: as in `with_absolute_paths`.
    config_file: the YAML file; a folder above it may hold what is missing.
    """
    here = f"the folder where the command is typed, {os.getcwd()}"
    places = [(key, ".", here) for key in GIVEN]
    if not storage.is_remote(runs):
        places += [
            (key, runs, here if runs == "." else f"the runs folder, {runs}")
            for key in LEFT
            if key != "run_dir"
        ]
    clauses = []
    for key, base, place in places:
        for given in _paths(config, key):
            tried = os.path.abspath(os.path.join(base, given))
            whole = storage.is_remote(given) or given.startswith(("/", "file://"))
            if whole or tried not in message or os.path.lexists(tried) or glob.glob(tried):
                continue
            found = _found_above(given, config_file)
            mend = "go to the right one, or write a whole path"
            if found:
                mend = f"it exists below {found}: go there, or write {key}={found}/{given}"
            clauses.append(f"{key}={given} is relative to {place}; {mend}")
    return "; ".join([message, *clauses])


def _found_above(given: str, config_file: str | None) -> str | None:
    """The nearest folder above the YAML file below which the path exists, such as a project's top folder."""
    folders = Path(config_file).resolve().parents if config_file else ()
    return next((str(folder) for folder in folders if (folder / given).exists()), None)


def _absolute(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(path.removeprefix("file://"))


def _paths(config: Config, key: str) -> tuple[str, ...]:
    value = config
    for name in key.split("."):
        value = getattr(value, name)
    if isinstance(value, dict):
        return tuple(path for path in value.values() if path.lower().endswith(VECTOR_FILES))
    return value if isinstance(value, tuple) else (value,) if value else ()


def _changed(section: BaseModel, names: list[str], change: Callable[[str], str]) -> BaseModel:
    """A copy of a section with the path or paths at names[0].names[1]... changed; empty ones stay."""
    value = getattr(section, names[0])
    if len(names) > 1:
        value = _changed(value, names[1:], change)
    elif isinstance(value, tuple):
        value = tuple(path and change(path) for path in value)
    elif isinstance(value, dict):
        files = {name: change(path) for name, path in value.items() if path.lower().endswith(VECTOR_FILES)}
        value = value | files
    elif value:
        value = change(value)
    return section.model_copy(update={names[0]: value})
