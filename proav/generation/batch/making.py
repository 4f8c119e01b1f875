"""From a planned batch to its files, in three steps: read what is given, denoise, finish.

`Maker` takes a row of Ray Data, does some of the steps in turn, and returns a row. So one actor can do all
steps, or each can be a stage in other processes and on other machines. No Ray here.

A row of Ray Data is a batch:

    batch: the rows of the plan, as `plan.pack` gives them.
    arrays: bulky arrays as bytes, in the form of safetensors.
    error: the error that ended the batch, as `errors.to_text` gives it; Ray would wrap an exception.

An input that cannot be used does not end the batch: its row of the plan gets `error` and `message`.

Clips of a length of their own (`seconds`) are made of windows. Each window is given the end of the one
before. So `Denoise` denoises and finishes the windows of such a batch in turn, and writes its files.
"""

import contextlib
import functools
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.numpy import load, save

from proav import storage
from proav.config import Config
from proav.config.reading import config_to_dict
from proav.data.prepare.isolation import IsolatedDecoder, decoder_of_this_process
from proav.data.sources.finding import SourceRow
from proav.diffusion import make_process
from proav.diffusion.tasks import TASKS
from proav.errors import TOLD, MediaError, UserError, to_text
from proav.generation.batch.manifest import sample_path, write_part
from proav.generation.batch.plan import manifest_row, pack, unpack
from proav.generation.finishing import finish_clips
from proav.generation.given_files import clip_of_streams, streams_read
from proav.generation.given_vectors import GivenVectors
from proav.generation.given_windows import GivenWindows, known_of_window
from proav.generation.inputs import frames_around
from proav.generation.long_clips import WHOLE_FILE, of_length, wanted_frames, window_of
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings, changed_settings, with_settings
from proav.geometry import ClipGeometry
from proav.media.container import ClipWriter
from proav.media.melframes import MelFrames

DECODER = "proav.generation.given_files:GivenDecoder"


@dataclass(frozen=True)
class Recipe:
    """What all batches of a job share; it is sent to every process.

    config: of the model, with the job's task, its encoders, its limits for decoding, and `changed`.
    checkpoint_path: of the ST-DiT.
    folder: where the samples go.
    data_folder: of the prepared data, whose windows are given if there is no listing.
    settings, precision: how samples are made.
    shared: values of all rows of the manifest, see `plan.shared_values`.
    changed: settings that differ from the checkpoint's, see `changed_settings`.
    """

    config: Config
    checkpoint_path: str
    folder: str
    data_folder: str
    settings: SamplingSettings
    precision: str
    shared: dict
    changed: dict

    def requests(self, rows: Iterable[tuple[int, dict]], arrays: dict) -> list[SampleRequest]:
        """The pipeline's request for each row, of a whole clip. rows: pairs (place in the batch, row)."""
        return [self._request(place, row, arrays) for place, row in rows]

    def windows(self, rows: Iterable[tuple[int, dict]], arrays: dict) -> list[SampleRequest]:
        """The first windows of the clips of `requests`."""
        return [window_of(self.config, request) for request in self.requests(rows, arrays)]

    def num_frames(self, row: dict) -> int | None:
        """Frames of the clip that a row of the plan asks for; None: those of a window, or of the file."""
        seconds = row.get("seconds")
        return None if seconds in (None, WHOLE_FILE) else wanted_frames(self.config, seconds, 1)

    def known(self, row: dict) -> np.ndarray | None:
        """The frames that are given, bool [2, T], if the task asks for a span; None for other tasks.

        Raises MediaError if the span of a listing's row does not fit a clip of the model.
        """
        task, geometry = self.settings.task, ClipGeometry.from_config(self.config)
        if "span" not in row:
            return known_of_window(self.config, task, row.get("given", {}))
        if isinstance(row["span"], str):
            raise MediaError(
                "bad_span",
                f"span={row['span']!r}: expected begin and end in seconds within the {geometry.seconds:g} s "
                'of a clip, such as "0.4,0.8" (in a CSV with the quotes)',
            )
        try:
            return frames_around(geometry, task, row["span"], row["stream"])
        except UserError as error:
            raise MediaError("bad_span", str(error)) from error

    def _request(self, place: int, row: dict, arrays: dict) -> SampleRequest:
        task, num_frames = self.settings.task, self.num_frames(row)
        streams = {name: arrays[f"{place}.{name}"] for name in streams_read(task)}
        if row.get("seconds") == WHOLE_FILE:
            (stream,) = streams.values()
            frame = ClipGeometry.from_config(self.config).samples_per_frame if "audio" in streams else 1
            num_frames = len(stream) // frame
        request = SampleRequest(
            row["seed"],
            row.get("number", row["index"]),
            row["label"],
            given=clip_of_streams(self.config, task, streams, num_frames),
            settings=self.settings,
            known=self.known(row),
        )
        return request if num_frames is None else of_length(self.config, request, num_frames)


def recipe_of(config: Config, model: Config, checkpoint_path: str, folder: str, shared: dict) -> Recipe:
    """The recipe of a job.

    config: of the job.
    model: the configuration of the checkpoint.
    checkpoint_path, folder, shared: as in `Recipe`.
    """
    changed = changed_settings(model, config)
    model = with_settings(model, changed)
    limits = {name: getattr(config.data, name) for name in ("stall_seconds", "source_timeout_seconds")}
    data = model.data.model_copy(update={**limits, "sources": (), "listing": ()})
    own = {name: getattr(config.generate, name) for name in ("task", "encoders")}
    generate = model.generate.model_copy(update=own)
    return Recipe(
        model.model_copy(update={"data": data, "generate": generate}),
        checkpoint_path,
        folder,
        config.data_folder,
        SamplingSettings.from_config(config).filled(make_process(model)),
        config.generate.precision,
        shared,
        changed,
    )


class ReadGiven:
    """Reads what is given, and adds it to `arrays` as "<place in the batch>.<stream>".

    Files are decoded in a separate process. Windows of prepared data are read from their store.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @functools.cached_property
    def decoder(self) -> IsolatedDecoder:
        return decoder_of_this_process(json.dumps(config_to_dict(self.recipe.config)), DECODER)

    @functools.cached_property
    def windows(self) -> GivenWindows:
        return GivenWindows(self.recipe.data_folder, self.recipe.config, self.recipe.settings.task)

    def __call__(self, rows: list[dict], arrays: dict) -> tuple[list[dict], dict]:
        read = functools.cache(self._read)  # several samples may have the same input
        marked = []
        for place, row in enumerate(rows):
            given = row["given"]
            try:
                self.recipe.known(row)  # or says why not, before a file is decoded
                if "path" in given:
                    found = read(given["path"], given["start_seconds"], self._end(row))
                else:
                    found = self.windows.streams(given)
            except MediaError as error:
                found = error
            if isinstance(found, MediaError):
                row = row | {"error": found.reason, "message": str(found)}
            else:
                read_streams = streams_read(self.recipe.settings.task)
                arrays |= {f"{place}.{name}": found[name] for name in read_streams}
            marked.append(row)
        return marked, arrays

    def _end(self, row: dict) -> float | None:
        """Where in its file the stream of a row ends, in seconds; None: where one window of it ends."""
        if row.get("seconds") == WHOLE_FILE:
            return math.inf
        frames = self.recipe.num_frames(row) if TASKS[self.recipe.settings.task].given else None
        start = row["given"]["start_seconds"]
        return None if frames is None else start + frames / self.recipe.config.clip.fps

    def _read(
        self, path: str, start_seconds: float, end_seconds: float | None
    ) -> dict[str, np.ndarray] | MediaError:
        """The streams of a file, or why it has none. end_seconds: as in `_end`."""
        source = SourceRow(id="", key=path, path=path, start_seconds=start_seconds, end_seconds=end_seconds)
        try:
            (streams,) = self.decoder.rows(source)
        except MediaError as error:
            return error
        return streams


class Denoise:
    """Adds "video", uint8 [B, T, H, W, 3], and "mel", float32 [B, T, M, S], for the rows without an error.

    If a row asks for a length, it writes the files of the batch instead.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        if device != "cpu":
            torch.set_float32_matmul_precision("high")  # TF32
        self.recipe = recipe
        self.pipeline = SoundingVideoPipeline.from_checkpoint(
            recipe.checkpoint_path, device=device, precision=recipe.precision, settings=recipe.changed
        )
        self.vectors = GivenVectors(recipe.config, recipe.data_folder)

    def __call__(self, rows: list[dict], arrays: dict) -> tuple[list[dict], dict]:
        usable = _usable(rows)
        if usable:
            told = self.vectors([row for _, row in usable])
            requests = [
                replace(request, vectors=vectors)
                for request, vectors in zip(self.recipe.requests(usable, arrays), told, strict=True)
            ]
            if _has_lengths(usable):
                self._write(usable, requests)
                return rows, {}
            windows = [window_of(self.recipe.config, request) for request in requests]
            video, mel = self.pipeline.sample_streams(windows)
            arrays |= {"video": video.cpu().numpy(), "mel": mel.float().cpu().numpy()}
        return rows, arrays

    def _write(self, usable: list[tuple[int, dict]], requests: list[SampleRequest]) -> None:
        """Makes the files of clips of any length. A few windows of what is made of each are in memory.

        A window is written while the next one is made, so that no GPU waits for the encoder.
        """
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(ClipWriter()) for _ in requests]
            thread, writing = stack.enter_context(ThreadPoolExecutor(1)), deque()
            for place, piece in self.pipeline.pieces(requests):
                if len(writing) == len(requests):
                    writing.popleft().result()
                writing.append(thread.submit(writers[place].add, piece))
            for written in writing:
                written.result()
            for writer, (_, row) in zip(writers, usable, strict=True):
                writer.save(sample_path(self.recipe.folder, row["index"]))


class Finish:
    """Makes the sounds, writes the files unless `Denoise` has, and then the batch's part of the manifest."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.mel_frames = recipe, MelFrames(recipe.config)

    def __call__(self, rows: list[dict], arrays: dict) -> tuple[list[dict], dict]:
        usable = _usable(rows)
        done = [manifest_row(row, self.recipe.shared) for row in rows]
        if usable and not _has_lengths(usable):
            streams = (torch.from_numpy(arrays[name]) for name in ("video", "mel"))
            windows = self.recipe.windows(usable, arrays)
            clips = finish_clips(self.recipe.config, self.mel_frames, windows, *streams)
            for (place, _), clip in zip(usable, clips, strict=True):
                clip.save(storage.join(self.recipe.folder, done[place]["path"]))
        for row in done:
            if "error" in row:  # an earlier job with other settings may have left a file
                storage.delete_file(storage.join(self.recipe.folder, row["path"]))
        write_part(self.recipe.folder, done)
        return rows, {}


STEPS = ("read", "denoise", "finish")


class Maker:
    """Does some steps of a batch in turn. It is a Ray Data actor; tests call it directly."""

    def __init__(self, recipe: Recipe, steps: Iterable[str] = STEPS, device: str = "cpu") -> None:
        """steps: some of STEPS, in their order. "read" does nothing for a task that is given nothing.

        An error of TOLD is not raised here, where Ray would wrap it: each batch returns it.
        """
        make: dict[str, Callable] = {
            "read": lambda: ReadGiven(recipe),
            "denoise": lambda: Denoise(recipe, device),
            "finish": lambda: Finish(recipe),
        }
        given = bool(streams_read(recipe.settings.task))
        self.steps, self.error = [], ""
        try:
            self.steps = [make[step]() for step in steps if step != "read" or given]
        except TOLD as error:
            self.error = to_text(error)

    def __call__(self, row: dict) -> dict:
        if row.get("error"):
            return row
        if self.error:
            return {"batch": row["batch"], "arrays": b"", "error": self.error}
        rows, arrays = unpack(row["batch"]), load(row["arrays"]) if row.get("arrays") else {}
        try:
            for step in self.steps:
                rows, arrays = step(rows, arrays)
        except TOLD as error:
            return {"batch": row["batch"], "arrays": b"", "error": to_text(error)}
        return {"batch": pack(rows), "arrays": _to_bytes(arrays), "error": ""}


def errors_of(rows: Iterable[dict]) -> Counter:
    """How many rows have an input that could not be used, by reason."""
    return Counter(row["error"] for row in rows if "error" in row)


def _to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    # safetensors writes an array's memory as it is, so the values of a view are first put in order
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}) if arrays else b""


def _usable(rows: list[dict]) -> list[tuple[int, dict]]:
    return [(place, row) for place, row in enumerate(rows) if "error" not in row]


def _has_lengths(usable: list[tuple[int, dict]]) -> bool:
    return any("seconds" in row for _, row in usable)
