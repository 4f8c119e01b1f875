"""Text that is compared: a label is the same in composed and decomposed Unicode, wherever it is named."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from proav.data.store.shards import label_indices
from proav.diffusion import RectifiedFlow
from proav.errors import CheckpointError
from proav.generation.batch.plan import wanted_rows
from proav.generation.pipeline import SoundingVideoPipeline
from proav.geometry import ClipGeometry
from proav.metrics.agreement import class_hit
from proav.runs.checkpoint import check_resumable
from proav.serve.front.api_error import ApiError
from proav.serve.orders.model_card import ModelCard
from proav.serve.orders.requests import check_request, parse_request
from proav.text import find_label, find_labels, one_form, without_case
from tests.tiny import tiny_config

COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"
BOTH = pytest.mark.parametrize("asked", [COMPOSED, DECOMPOSED])
LABELS = pytest.mark.parametrize("labels", [("dog", COMPOSED), ("dog", DECOMPOSED)])


def test_forms():
    assert one_form(DECOMPOSED) == one_form(COMPOSED) == COMPOSED != DECOMPOSED
    assert one_form("a\uac00\u1100\u1161") == "a\uac00\uac00"
    assert without_case(DECOMPOSED.upper()) == without_case(COMPOSED)
    assert without_case("STRASSE") == without_case("stra\u00dfe")
    assert find_label("cat", ("dog",)) is None and find_label(0, ("0",)) is None


def test_several_labels_stand_in_a_text_or_in_a_list():
    labels = ("dog", "rain", "rain; storm")
    for given, places in (
        ("rain", [1]), ("rain;dog", [1, 0]), (" dog ; rain;dog", [0, 1]), (["rain", "dog"], [1, 0]), ("", []),
        ("rain; storm", [2]), ("rain;cat", [1, None]), ([], []), (0, [None]),
    ):  # fmt: skip
        assert find_labels(given, labels) == places


@BOTH
@LABELS
def test_a_label_is_found_in_either_form(asked, labels):
    assert find_label(asked, labels) == 1
    assert label_indices(pa.chunked_array([[["dog"], [asked], [], ["cat"]]]), labels).tolist() == [
        [0],
        [1],
        [2],
        [2],
    ]
    assert [class_hit(np.array([logits]), asked, labels) for logits in ([0.0, 1.0], [1.0, 0.0])] == [1.0, 0.0]
    assert SoundingVideoPipeline.label_indices(SimpleNamespace(labels=labels), asked) == [1]
    checkpoint = SimpleNamespace(labels=labels, hash="", clips=0, config=tiny_config())
    rows = wanted_rows(tiny_config(f"generate.label={asked}"), checkpoint)
    assert {row["label"] for row in rows} == {labels[1]}


def label_of(labels, fields):
    """The label that the HTTP interface finds in a request if the model knows `labels`."""
    card = ModelCard(
        id="tiny",
        created=0,
        labels=labels,
        vectors={},
        encoders=(),
        tasks=("joint",),
        geometry=ClipGeometry.from_config(tiny_config()),
        steps=2,
        max_steps=9,
        process=RectifiedFlow(),
        solver="euler",
        schedule_shift=1.0,
        guidance_scale=1.0,
        guidance_range=(0, 30),
        audio_guidance_scale=None,
        audio_guidance_range=(0, 30),
        guidance_interval=(0.0, 1.0),
        checkpoint_hash="",
        clips_trained=0,
        mel={},
        max_upload_bytes=1,
        max_windows=1,
        window_seconds=0.4,
        max_frames={"joint": 4},
    )
    return check_request(parse_request(fields), card, has_reference=False).label


@BOTH
@LABELS
@pytest.mark.parametrize("field", ["label", "prompt"])
def test_the_http_interface_finds_a_label_in_either_form_and_any_case(asked, labels, field):
    for text in (asked, asked.upper(), f" {asked} "):
        assert label_of(labels, {field: text}) == labels[1]
    assert label_of(labels, {"label": COMPOSED, "prompt": DECOMPOSED}) == labels[1]
    with pytest.raises(ApiError, match="is no label of tiny"):
        label_of(labels, {field: "Cafe"})


def test_labels_that_differ_in_case_alone_are_told_apart():
    assert [label_of(("Rain", "rain"), {"label": label}) for label in ("Rain", "rain")] == ["Rain", "rain"]


def test_a_run_goes_on_with_labels_in_the_other_form():
    config = tiny_config()

    kept = SimpleNamespace(kind="stdit", path="old", config=config, labels=(DECOMPOSED, "dog"))
    check_resumable(kept, config, labels=(COMPOSED, "dog"))
    with pytest.raises(CheckpointError, match="knows the labels"):
        check_resumable(kept, config, labels=("dog", COMPOSED))
