"""Two evaluations are compared, or the message says why not and what to type."""

import json

import pytest

from proav.errors import UserError
from proav.evaluate.table import compare_tables

PROTOCOL = {"hash": "abc", "record": {"name": "small", "num_resamples": 20, "real": {"path": "a"}}}


def metrics(value=0.5, *, protocol=PROTOCOL):
    rows = [{"metric": "sKVD", "value": value}, {"metric": "sFVD", "value": None}]
    return {"protocol": protocol, "tables": [{"name": "made", "rows": rows}]}


def compared(tmp_path, other):
    """What is said about metrics of 0.25 and another run's file with this content."""
    path = tmp_path / "other.json"
    path.write_text(other if isinstance(other, str) else json.dumps(other))
    return compare_tables(metrics(0.25), "ours", str(path))


def test_numbers_of_both_are_shown(tmp_path):
    assert compared(tmp_path, metrics()).splitlines()[1:] == ["  made sKVD: 0.25 here, 0.5 there"]


def test_a_folder_or_nothing_in_place_of_the_file(tmp_path):
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "nowhere.json", "no such file")):
        with pytest.raises(UserError, match=f"{said}; expected .*=RUN/eval/metrics.json"):
            compare_tables(metrics(), "ours", str(path))


@pytest.mark.parametrize(
    "other",
    [
        "no JSON",
        [1],
        {"protocol": PROTOCOL},
        metrics("high"),
        metrics([1]),
        metrics(protocol=PROTOCOL | {"record": [1]}),
        metrics(protocol=PROTOCOL | {"record": [1], "hash": "another"}),
    ],
)
def test_a_foreign_file_is_refused_in_words(tmp_path, other):
    with pytest.raises(UserError, match="other.json is no metrics.json of this version"):
        compared(tmp_path, other)


def test_different_protocols_are_told_apart(tmp_path):
    other = PROTOCOL | {"hash": "another"}
    with pytest.raises(UserError, match=r"they differ in the hash alone \(abc here, another there\)"):
        compared(tmp_path, metrics(protocol=other))
    other["record"] = PROTOCOL["record"] | {"real": {"path": "b"}}
    with pytest.raises(UserError, match=r"they differ in real.path \(a here, b there\)"):
        compared(tmp_path, metrics(protocol=other))
