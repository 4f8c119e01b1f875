"""Turns what a client sent into a checked order, or into an ApiError that names the field.

Pure: no Ray, no files. Not here: the decoding of an uploaded file (`references.py`), HTTP (`api/http.py`).
"""

import difflib
import json
import math
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from proav.diffusion import FlowMap
from proav.diffusion.solvers import SOLVERS
from proav.diffusion.tasks import TASKS
from proav.errors import UserError
from proav.generation.inputs import frames_around
from proav.generation.sampling_settings import MAX_GUIDANCE_SCALE, MAX_SHIFT, check_guidance_interval
from proav.serve.front.api_error import SHOWN_CHARACTERS, ApiError, shown
from proav.serve.orders.model_card import ModelCard
from proav.text import LABEL_SEPARATOR, find_label, without_case
from proav.vectors import check_vector_names, fitted, to_text

MAX_SEED = 2**53 - 1
"""Up to this number, whole numbers are exact in JavaScript and in every JSON reader."""


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _as_text(value: Any) -> Any:
    """Takes a whole number as a label: 3 in JSON is the label "3"."""
    if isinstance(value, bool | float | list | dict):
        raise ValueError('expected a text, such as "3"')
    return str(value) if isinstance(value, int) else value


def _as_pair(value: Any) -> Any:
    """Takes two numbers from a form, such as 0.4,0.8."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _from_json(value: Any) -> Any:
    """Reads a text as JSON: a form gives every value as text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError('expected JSON, such as {"caption": "a glass falls"}') from None


Number = BeforeValidator(_no_truth_value)
Label = BeforeValidator(_as_text)
Pair = Annotated[tuple[Annotated[float, Number], Annotated[float, Number]], BeforeValidator(_as_pair)]


class InputReference(BaseModel):
    """A file inside a JSON body."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    image_url: str
    """A sound or video file as a data: URL, such as data:audio/wav;base64,... (the name is OpenAI's)."""


class VideoRequest(BaseModel):
    """A clip to make. Fields beyond prompt, model, seconds, size and input_reference are proav's own."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    prompt: Annotated[str, Label, Field(max_length=1000)] = ""
    """A label of the model (GET /v1/models lists them), in capitals or not, or several with ; between them;
    empty: no label. If the server encodes texts, any other prompt is such a text.
    """
    model: str | None = None
    """Id of the served model; may be left out."""
    seconds: Annotated[str | float | None, Number] = None
    """Length of the clip in seconds; for continue, the given clip is included. Longer clips than the model's
    own are made in windows that overlap. GET /v1/models has the limits. Empty: the model's own, or
    num_windows.
    """
    size: str | None = None
    """WIDTHxHEIGHT in pixels: the model's own; may be left out."""
    input_reference: InputReference | None = None
    """What the task is given: sound (a2v), pictures (v2a), an image (i2av), a clip (continue, inpaint).
    In a multipart body: the file itself."""
    label: Annotated[str | None, Label] = None
    """A label of the model, or several with ; between them; the same as `prompt`, which may then be empty."""
    vectors: Annotated[dict[str, str | list] | None, BeforeValidator(_from_json)] = None
    """Conditions besides labels, by the names of GET /v1/models: a list of numbers, a list of such lists for
    a sequence, or a text if the server encodes it.
    """
    task: str = "joint"
    """joint: picture and sound; a2v: a picture for given sound; v2a: sound for a given picture; i2av: a clip
    from its first picture; continue: a clip is continued; inpaint: a span of a clip is made anew."""
    seed: Annotated[int | None, Number] = None
    """Seed of the noise: the same seed and settings give the same clip. Empty: drawn, and reported."""
    steps: Annotated[int | None, Number] = None
    """Denoising steps; empty: the server's default."""
    solver: str | None = None
    """How a step is computed; GET /v1/models lists the model's solvers. heun calls the model twice a step.
    Empty: the server's default.
    """
    schedule_shift: Annotated[float | None, Number] = None
    """Shift s of the sampling times, 1 to 100: t becomes s t / (1 + (s - 1) t), so more steps are near noise.
    Empty: the server's default.
    """
    guidance_scale: Annotated[float | None, Number] = None
    """Classifier-free guidance towards the label; 1 is none. Empty: the server's default."""
    audio_guidance_scale: Annotated[float | None, Number] = None
    """The same for the sound. Empty: the server's default; if it has none, guidance_scale is for both."""
    guidance_interval: Pair | None = None
    """Times between which guidance acts, 0 (clean) to 1 (noise), such as [0.1, 0.8]; in a form 0.1,0.8.
    Empty: the server's default.
    """
    num_windows: Annotated[int, Number] = 1
    """For continue: how many windows are added. GET /v1/models says how many seconds each adds."""
    span: Pair | None = None
    """For inpaint: begin and end in seconds, such as [0.4, 0.8]; in a form 0.4,0.8."""
    stream: Literal["both", "video", "audio"] = "both"
    """For inpaint: what is made anew in the span."""


class Order(BaseModel):
    """A checked request in which every setting has a value.

    Together with the checkpoint and what is given, it determines the clip.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    prompt: str
    label: str | None
    """The model's own spelling; several have ; between them."""
    texts: dict[str, str] = {}
    """What was given as text, by the name of its vectors."""
    vectors: dict[str, str] = {}
    """Vectors in the form of `to_text`. Once the texts are encoded, theirs are among them."""
    task: Literal[*TASKS]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    steps: Annotated[int, Field(ge=1)]
    solver: Literal[*SOLVERS] | None = None
    """How a step is computed. Jobs of older servers lack it, and the next two: see `filled`."""
    schedule_shift: Annotated[float, Field(ge=1, le=MAX_SHIFT)] | None = None
    """Shift of the sampling times."""
    guidance_interval: tuple[float, float] | None = None
    """Times between which guidance acts, the cleaner first."""
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)]
    audio_guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)] | None = None
    """Empty: guidance_scale is for both."""
    num_windows: Annotated[int, Field(ge=1)] = 1
    """If a given clip is continued to num_frames, this is set once the length of that clip is known
    (`queue/service.py`)."""
    num_frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of the clip, if a length is asked for."""
    span: tuple[float, float] | None = None
    stream: Literal["both", "video", "audio"] = "both"

    @property
    def num_calls(self) -> int:
        """Calls of the model for each window. The order must be filled."""
        return SOLVERS[self.solver].num_calls(self.steps)

    def filled(self, card: ModelCard) -> "Order":
        """The order with the settings that older servers did not record.

        They always took those of the model's run, which are the card's defaults. card: of the checkpoint that
        makes the clip.
        """
        names = ("solver", "schedule_shift", "guidance_interval")
        lacking = [name for name in names if getattr(self, name) is None]
        return self.model_copy(update={name: getattr(card, name) for name in lacking})


def parse_request(fields: dict[str, Any]) -> VideoRequest:
    """The fields of a JSON or form body, typed. Raises ApiError 400 that names the first wrong field."""
    for name in fields:
        if name not in VideoRequest.model_fields:
            near = difflib.get_close_matches(name, VideoRequest.model_fields, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"expected some of {', '.join(VideoRequest.model_fields)}"
            )
            raise ApiError(
                400,
                f"unknown field {shown(name)}; {hint}",
                param=name[:SHOWN_CHARACTERS],
                code="unknown_parameter",
            )
    try:
        return VideoRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        said = first["msg"].removeprefix("Value error, ")
        meaning = VideoRequest.model_fields[name].description
        raise ApiError(
            400, f"{name}={shown(fields[name])}: {said[:1].lower()}{said[1:]}. {name}: {meaning}", param=name
        ) from None


def check_request(request: VideoRequest, card: ModelCard, *, has_reference: bool) -> Order:
    """The order of a request: defaults are filled in, and a seed is drawn if none is given.

    card: what the model can do. has_reference: whether the client sent a file.
    Raises ApiError for what this model does not have.
    """
    if request.model not in (None, "", card.id):
        raise ApiError(
            404,
            f"model={shown(request.model)} is not served here; expected {card.id}",
            param="model",
            code="model_not_found",
        )
    _check_size(request, card)
    if request.task not in card.tasks:
        trained = " (this model was not trained for it)" if request.task in TASKS else ""
        raise ApiError(
            400, f"task={shown(request.task)}: expected one of {', '.join(card.tasks)}{trained}", param="task"
        )
    _check_reference(request.task, card, has_reference)
    _check_span(request, card)
    extends = TASKS[request.task].extends
    if request.num_windows != 1 and not extends:
        raise ApiError(
            400,
            f"num_windows={request.num_windows}: task={request.task} makes one clip, and seconds is its "
            "length; expected 1, or task=continue",
            param="num_windows",
        )
    num_frames = _num_frames(request, card)
    texts, vectors = _told_of(request, card)
    prompt_is_text = bool(card.encoders) and _labels_in(request.prompt, card) is None
    if prompt_is_text:
        _check_prompt(request, card)
        texts.setdefault(card.encoders[0], request.prompt.strip())
    return Order(
        prompt=request.prompt,
        label=_label_of(request, card, names=("label",) if prompt_is_text else ("label", "prompt")),
        texts=texts,
        vectors=vectors,
        task=request.task,
        seed=_in_range("seed", request.seed, secrets.randbelow(2**31), 0, MAX_SEED),
        **_sampling_of(request, card),
        num_windows=_in_range("num_windows", request.num_windows, 1, 1, card.max_windows),
        num_frames=num_frames,
        span=request.span,
        stream=request.stream,
    )


def check_names(given: list[str], allowed: tuple[str, ...]) -> None:
    """Raises ApiError 400 if a query parameter is not `allowed` or is given twice."""
    for name in given:
        if name not in allowed:
            expected = f"expected some of {', '.join(allowed)}" if allowed else "this address takes none"
            said = f"unknown parameter {shown(name)} in the query; {expected}"
            raise ApiError(400, said, param=name[:SHOWN_CHARACTERS], code="unknown_parameter")
        if given.count(name) > 1:
            raise ApiError(400, f"{name} is given {given.count(name)} times; expected once", param=name)


def _sampling_of(request: VideoRequest, card: ModelCard) -> dict[str, Any]:
    """The fields of the order that say how its clip is sampled. Raises ApiError 400."""
    solver = card.solver if request.solver is None else request.solver
    if solver not in card.solvers:
        others = " (this model takes no other)" if solver in SOLVERS else ""
        said = f"solver={shown(solver)}: expected one of {', '.join(card.solvers)}{others}"
        raise ApiError(400, said, param="solver")
    shift = _in_range("schedule_shift", request.schedule_shift, card.schedule_shift, 1, MAX_SHIFT)
    return {
        "solver": solver,
        "schedule_shift": shift,
        "steps": _steps_of(request, card, solver, shift),
        "guidance_scale": _guidance("guidance_scale", request.guidance_scale, card),
        "audio_guidance_scale": _guidance("audio_guidance_scale", request.audio_guidance_scale, card),
        "guidance_interval": _interval_of(request, card),
    }


def _steps_of(request: VideoRequest, card: ModelCard, solver: str, shift: float) -> int:
    """Steps of the order. Raises ApiError 400 if there are too many, also if the default is too many."""
    steps, most = card.steps if request.steps is None else request.steps, card.most_steps(solver, shift)
    if 1 <= steps <= most:
        return steps
    said = f"steps={shown(steps)}" + (" (the default)" if request.steps is None else "")
    if most != card.most_steps(card.solver, card.schedule_shift):
        said += f" with solver={solver} and schedule_shift={shift:g}"
    raise ApiError(400, f"{said}: expected 1 to {most}", param="steps")


def _interval_of(request: VideoRequest, card: ModelCard) -> tuple[float, float]:
    """Interval of guidance of the order. Raises ApiError 400."""
    if request.guidance_interval is None:
        return card.guidance_interval
    try:
        check_guidance_interval(request.guidance_interval, card.process)
    except UserError as error:
        raise ApiError(400, str(error), param="guidance_interval") from error
    return request.guidance_interval


def _check_reference(task: str, card: ModelCard, has_reference: bool) -> None:
    """Raises ApiError 400 if a file is missing, or is given to a task that takes none."""
    row = TASKS[task]
    if row.reads and not has_reference:
        what = {"audio": "a file with sound", "video": "a file with pictures"}.get(row.given)
        what = what or ("a clip" if row.asks_span or row.extends else "an image, or a file with pictures,")
        raise ApiError(
            400,
            f"task={task} needs {what} as input_reference",
            param="input_reference",
            code="missing_required_parameter",
        )
    if has_reference and not row.reads:
        others = [f"task={name}" for name in card.tasks if TASKS[name].reads]
        raise ApiError(
            400, f"task={task} takes no input_reference; write {' or '.join(others)}", param="input_reference"
        )


def _check_span(request: VideoRequest, card: ModelCard) -> None:
    if request.span is None and request.stream != "both" and not TASKS[request.task].asks_span:
        said = f"stream={request.stream}: task={request.task} has no span"
        raise ApiError(400, f"{said}; leave it out, or write task=inpaint", param="stream")
    try:
        frames_around(card.geometry, request.task, request.span, request.stream)
    except UserError as error:
        raise ApiError(400, str(error), param="span") from error


def _check_size(request: VideoRequest, card: ModelCard) -> None:
    if request.size not in (None, "", card.size):
        raise ApiError(
            400,
            f"size={shown(request.size)}: this model makes {card.size} (WIDTHxHEIGHT); "
            "leave size out or write that",
            param="size",
        )


def _num_frames(request: VideoRequest, card: ModelCard) -> int | None:
    """Frames of a clip whose length is asked for; None if it is not. Raises ApiError 400."""
    if request.seconds in (None, ""):
        return None
    said = f"seconds={shown(request.seconds)}"
    if request.num_windows != 1:
        said = f"{said} and num_windows={request.num_windows}: expected only one of them"
        raise ApiError(400, said, param="seconds")
    fps, most = card.geometry.fps, card.max_frames[request.task]
    try:
        seconds = float(request.seconds)
    except ValueError:
        seconds = math.nan
    # one frame may be written with six digits, as in the message: 0.0333333 at 30 frames a second
    if not 1 <= round(seconds * fps, 4) < most + 1 or round(seconds * fps) > most:
        longer = "" if most > card.geometry.num_frames else ", since this model makes no longer clips by it"
        raise ApiError(
            400,
            f"{said}: expected {1 / fps:g} to {most / fps:g} for task={request.task}{longer}",
            param="seconds",
        )
    return round(seconds * fps)


def _check_prompt(request: VideoRequest, card: ModelCard) -> None:
    """Raises ApiError 400 if the vectors that the prompt stands for are given with another value."""
    name, prompt = card.encoders[0], request.prompt.strip()
    given = (request.vectors or {}).get(name, prompt)
    if not isinstance(given, str) or given.strip() != prompt:
        raise ApiError(
            400,
            f"prompt={shown(prompt)} and vectors={{{name!r}: {shown(given)}}} disagree; the prompt is a text "
            f"for {name} here: give one of the two",
            param="prompt",
        )


def _label_of(request: VideoRequest, card: ModelCard, *, names: Sequence[str]) -> str | None:
    """The model's own spelling of the labels; None if no label is given. names: fields that may hold them."""
    found = {}
    for name in names:
        text = (getattr(request, name) or "").strip()
        if not text:
            continue
        labels = _labels_in(text, card)
        if labels is None:
            expected = (
                f"one of {', '.join(card.labels)}"
                if card.labels
                else "nothing: this model was trained without labels"
            )
            raise ApiError(
                400,
                f"{name}={shown(text)} is no label of {card.id}; expected {expected}, or empty for none",
                param=name,
            )
        found[name] = LABEL_SEPARATOR.join(labels)
    if len(set(found.values())) > 1:
        said = f"label={found['label']!r} and prompt={found['prompt']!r} disagree"
        raise ApiError(400, f"{said}; the prompt names a label here: give one of the two", param="prompt")
    return next(iter(found.values()), None)


def _labels_in(text: str, card: ModelCard) -> list[str] | None:
    """The model's labels that a text names, in capitals or not; None if it names anything else."""
    known = {without_case(label): label for label in card.labels}

    def label_of(part: str) -> str | None:
        exact = find_label(part, card.labels)
        return known.get(without_case(part)) if exact is None else card.labels[exact]

    whole = label_of(text.strip())
    parts = [part.strip() for part in text.split(LABEL_SEPARATOR)]
    found = [whole] if whole is not None else [label_of(part) for part in parts if part]
    return None if None in found else list(dict.fromkeys(found))


def _told_of(request: VideoRequest, card: ModelCard) -> tuple[dict[str, str], dict[str, str]]:
    """The fields `texts` and `vectors` of the order for a request. Raises ApiError for what does not fit."""
    texts, vectors = {}, {}
    try:
        check_vector_names(request.vectors or {}, card.vectors)
        for name, value in (request.vectors or {}).items():
            if not isinstance(value, str):
                vectors[name] = to_text(fitted(value, card.vectors[name], name))
            elif name in card.encoders:
                texts[name] = value.strip()
            else:
                raise UserError(f"{name} is a text, which this server does not encode; expected numbers")
    except UserError as error:
        raise ApiError(400, f"vectors: {error}", param="vectors") from None
    return {name: text for name, text in texts.items() if text}, vectors


def _guidance(name: str, given: float | None, card: ModelCard) -> float | None:
    """A scale of guidance. A flow map takes 1, which asks for none beside what it has learned.

    name: of the field. given: the client's value. Raises ApiError 400 if the model does not take it.
    """
    given = None if given == 1 and isinstance(card.process, FlowMap) else given
    return _in_range(name, given, getattr(card, name), *getattr(card, name.replace("scale", "range")))


def _in_range(name: str, given: float | None, default: float, low: float, high: float):
    """`given` if it is in [low, high], `default` if it is None. Raises ApiError 400 for another value.

    name: of the field, for the error.
    given: the client's value; None: not given.
    default: used if no value is given.
    low, high: the range.
    """
    if given is None:
        return default
    if not low <= given <= high:
        raise ApiError(
            400,
            f"{name}={shown(given)}: expected {low:g} to {high if isinstance(high, int) else f'{high:g}'}",
            param=name,
        )
    return given
