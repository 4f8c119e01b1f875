"""The evaluation job: what it refuses and how, and folders measured against folders.

Tables are compared only under one protocol.
"""

import dataclasses
import json

import pytest

from proav.errors import UserError
from proav.evaluate.clip_sets import View
from proav.evaluate.job import evaluate, find_networks
from proav.evaluate.table import compare_tables, format_table
from proav.metrics.protocols import PROTOCOLS, find_protocol
from tests.tiny import tiny_config

VIEW = View(16, 10, 64, 64, 16_000, "pad")


def test_a_protocol_is_found_or_the_known_ones_are_named():
    assert (
        find_protocol("mm-diffusion-64").num_clips == 2048 and find_protocol("mm-diffusion-256").size == 256
    )
    with pytest.raises(UserError, match="did you mean mm-diffusion-64"):
        find_protocol("mm-diffusion")
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())


def test_networks_without_weights_say_what_to_type():
    found, missing = find_networks(find_protocol("small"), None, VIEW)
    assert set(found) == {"surrogate-video", "surrogate-audio"}
    assert "evaluate.weights=DIR with i3d-kinetics400.safetensors" in missing["i3d-kinetics400"]
    with pytest.raises(
        UserError,
        match="measured as a whole: FVD, KVD needs evaluate.weights=DIR.*"
        "FAD needs evaluate.weights=DIR with audioclip.safetensors",
    ):
        find_networks(find_protocol("mm-diffusion-64"), None, VIEW)


@pytest.fixture
def quick(monkeypatch):
    """The protocol `small` without the scores that load libraries."""
    monkeypatch.setitem(PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], scores=("synchrony",)))


@pytest.mark.ray
def test_two_folders_are_compared_and_a_second_time_nothing_is_done(
    folders, tmp_path, ray_local, capsys, quick
):
    config = tiny_config(
        f"run_dir={tmp_path}/a",
        f"evaluate.real={folders[0]}",
        f"evaluate.fake={folders[1]}",
        "evaluate.num_resamples=20",
        "evaluate.num_workers=null",
    )
    metrics = evaluate(config)
    (table,) = metrics["tables"]
    rows = {row["metric"]: row for row in table["rows"]}
    assert (
        rows["sKVD"]["value"] is not None
        and rows["sKVD"]["low"] < rows["sKVD"]["high"]
        and rows["sKVD"]["floor"] is not None
    )
    assert rows["sFVD"]["value"] is None and "at least 66" in rows["sFVD"]["needs"] and rows["KVD"]["needs"]
    assert rows["nearest_training"]["needs"] and table["left_out"] == {"fake: unreadable": 1}
    assert "nothing is reconstructed" in metrics["yardsticks"]["absent"]
    assert not any("linear_planes" in name for name in rows)
    said = capsys.readouterr().out
    assert "made against real" in said and "left out: 1 clips" in said and "protocol small" in said
    assert (
        evaluate(config) == json.loads((tmp_path / "a/eval/metrics.json").read_text())
        and "done already" in capsys.readouterr().out
    )

    same = evaluate(
        config.model_copy(
            update={
                "run_dir": f"{tmp_path}/b",
                "evaluate": config.evaluate.model_copy(update={"num_workers": 1}),
            }
        )
    )
    assert same["tables"] == metrics["tables"] and same["protocol"]["hash"] == metrics["protocol"]["hash"]
    assert "sKVD" in compare_tables(same, "b", f"{tmp_path}/a/eval/metrics.json")
    protocol = same["protocol"]
    other = same | {
        "protocol": protocol | {"hash": "another", "record": protocol["record"] | {"num_resamples": 21}}
    }
    with pytest.raises(UserError, match=r"different protocols.*num_resamples \(21 here, 20 there\)"):
        compare_tables(other, "c", f"{tmp_path}/a/eval/metrics.json")
    with pytest.raises(UserError, match="no such file"):
        compare_tables(other, "c", f"{tmp_path}/nowhere.json")
    assert "sKVD" in format_table(table)


@pytest.mark.ray
def test_too_few_clips_for_a_papers_protocol_are_refused(folders, tmp_path, ray_local, monkeypatch):
    monkeypatch.setitem(
        PROTOCOLS,
        "paper",
        type(find_protocol("small"))(
            **{**vars(find_protocol("small")), "name": "paper", "num_clips": 30, "distances": ()}
        ),
    )
    config = tiny_config(
        f"run_dir={tmp_path}",
        f"evaluate.real={folders[0]}",
        f"evaluate.fake={folders[1]}",
        "evaluate.protocol=paper",
    )
    with pytest.raises(UserError, match="takes 30 generated clips, made has 10; make more"):
        evaluate(config)
