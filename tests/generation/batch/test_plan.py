"""What a job makes: samples of labels in turn or of a listing, less those that are there."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proav.diffusion import make_process
from proav.errors import UserError
from proav.generation.batch.manifest import line_of, list_parts, read_samples, sample_path, write_part
from proav.generation.batch.plan import (
    check_clips,
    make_plan,
    manifest_row,
    shared_values,
    unpack,
    unset_values,
    wanted_rows,
)
from proav.runs.checkpoint import load_checkpoint
from tests.tiny import save_tiny_stdit, tiny_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), tiny_config()))


def wanted(checkpoint, *words) -> list[dict]:
    return list(wanted_rows(tiny_config(*words), checkpoint))


def plan_of(folder, checkpoint, *words, batch_size=4):
    """(the plan, the indices of its batches)"""
    config = tiny_config(*words)
    rows, shared = wanted_rows(config, checkpoint), shared_values(config, checkpoint)
    defaults = unset_values(make_process(checkpoint.config))
    plan = make_plan(str(folder), rows, shared, batch_size, defaults=defaults)
    return plan, [[row["index"] for row in unpack(batch)] for batch in plan.batches]


def rows_of(checkpoint, *words) -> list[dict]:
    """The manifest's rows of all samples."""
    config = tiny_config(*words)
    shared = shared_values(config, checkpoint)
    return [manifest_row(row, shared) for row in wanted_rows(config, checkpoint)]


def store(folder, rows) -> None:
    """A manifest, and an empty file for each sample that it says was made."""
    (folder / "000000").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.jsonl").write_text("".join(map(line_of, rows)))
    for row in rows:
        if "error" not in row:
            (folder / row["path"]).touch()


def test_labels_take_turns_or_are_all_the_named_one(checkpoint):
    rows = wanted(checkpoint, "generate.num_samples=5", "seed=7")
    assert [row["label"] for row in rows] == ["rain", "speech", "rain", "speech", "rain"]
    assert rows[3] == {"index": 3, "seed": 7, "label": "speech"}
    assert {row["label"] for row in wanted(checkpoint, "generate.label=speech")} == {"speech"}
    with pytest.raises(UserError, match="expected one of: rain, speech"):
        wanted(checkpoint, "generate.label=thunder")


def test_a_listing_says_inputs_labels_seeds_and_counts(checkpoint, tmp_path):
    table = {
        "path": ["a.wav", "/far/b.mp4", "s3://bucket/c.mp4"], "start_seconds": [None, 1.5, 0.0],
        "label": ["speech", None, "rain"], "seed": [5, None, 0], "count": [2, None, 1],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    lines = ["path,start_seconds,label,seed,count", "a.wav,,speech,5,2", "/far/b.mp4,1.5,,,"]
    (tmp_path / "rows.csv").write_text("\n".join([*lines, "s3://bucket/c.mp4,0,rain,0,1"]) + "\n")
    words = ["generate.task=a2v", "generate.label=rain", "seed=9"]
    by_csv, by_parquet = (
        wanted(checkpoint, *words, f"generate.listing={tmp_path / name}")
        for name in ("rows.csv", "rows.parquet")
    )
    here = {"path": f"{tmp_path}/a.wav", "start_seconds": 0.0}
    assert by_csv == by_parquet == [
        {"index": 0, "seed": 5, "label": "speech", "given": here, "number": 0},
        {"index": 1, "seed": 5, "label": "speech", "given": here, "number": 1},
        {"index": 2, "seed": 9, "label": "rain", "given": {"path": "/far/b.mp4", "start_seconds": 1.5}},
        {"index": 3, "seed": 0, "label": "rain", "number": 0,
         "given": {"path": "s3://bucket/c.mp4", "start_seconds": 0.0}},
    ]  # fmt: skip


def test_a_listing_of_a_task_that_is_given_nothing_has_no_paths(checkpoint, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("label,count,path\nspeech,2,a.mp4\n,1,b.mp4\n")
    rows = wanted(checkpoint, f"generate.listing={tmp_path / 'rows.csv'}")
    assert [row["label"] for row in rows] == ["speech", "speech", None] and "given" not in rows[0]
    assert "not used: path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        ("joint", "label\nthunder\n", "row 1: label='thunder' is unknown .* expected one of: rain, speech"),
        ("joint", "label,seed\nrain,1\nrain,-1\n", "row 2: seed=-1; expected a whole number from 0 up"),
        ("joint", "count\n0\n", "row 1: count=0; expected a whole number from 1 up"),
        ("joint", "count\n1.5\n", "count=1.5"),
        ("joint", "label\n", "has no rows"),
        ("joint", "lable\nrain\n", "does not know: lable .did you mean label"),
        ("a2v", "label\nrain\n", "has no column path"),
        ("a2v", "path,label\n,rain\n", "row 1: the path is empty"),
        ("v2a", "path,start_seconds\na.mp4,-1\n", "row 1: start_seconds='-1'"),
        ("v2a", "path,start_seconds\na.mp4,1e300\n", "='1e300'; expected seconds from 0 up to 1,000,000,000"),
        (
            "joint",
            f"seed\n{'7' * 5000}\n",
            "row 1: seed=7{40}... .5,000 characters.; expected a whole number",
        ),
        ("joint", "labels\nrain\n", "labels .did you mean label[?].; expected some of .*; rename them$"),
        (
            "joint",
            "labels,fps\nrain,5\n",
            "rename them, or write 'data.other_columns=.fps.' to leave fps unus",
        ),
        (
            "joint",
            "caption\na drum\n",
            "know: caption; the model takes no vectors, so no texts .stdit.vectors.;",
        ),
    ],
)
def test_mistakes_in_a_listing_are_reported_with_their_row(checkpoint, tmp_path, task, text, said):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        wanted(checkpoint, f"generate.task={task}", f"generate.listing={tmp_path / 'rows.csv'}")
    assert f"generate.listing={tmp_path / 'rows.csv'}" in str(error.value)


def test_what_is_given_must_exist(checkpoint, tmp_path):
    with pytest.raises(UserError, match="no prepared data in .*absent"):
        wanted(checkpoint, "generate.task=a2v", f"run_dir={tmp_path / 'absent'}")
    with pytest.raises(UserError, match="generate.listing: no such file"):
        wanted(checkpoint, f"generate.listing={tmp_path / 'absent.csv'}")


def test_a_resumed_job_makes_the_batches_that_are_missing_and_no_others(checkpoint, tmp_path):
    words = "generate.num_samples=10"
    assert plan_of(tmp_path / "new", checkpoint, words)[1] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    rows = rows_of(checkpoint, words)
    store(tmp_path, rows[:4])
    (tmp_path / rows[8]["path"]).touch()
    write_part(str(tmp_path), rows[8:])
    plan, batches = plan_of(tmp_path, checkpoint, words)
    assert batches == [[4, 5, 6, 7], [9]]  # sample 9 has a row and no file
    assert (plan.num_wanted, plan.num_done, plan.num_replaced) == (10, 5, 1)
    assert not list_parts(str(tmp_path)) and not (tmp_path / "manifest").exists()
    assert [row["index"] for row in read_samples(str(tmp_path))] == [0, 1, 2, 3, 8]


def test_manifests_of_earlier_versions_count(checkpoint, tmp_path):
    rows = rows_of(checkpoint)
    later = ("precision", "solver", "schedule_shift", "guidance_interval")
    store(tmp_path, [{key: value for key, value in row.items() if key not in later} for row in rows])
    before = (tmp_path / "manifest.jsonl").read_text()
    plan, batches = plan_of(tmp_path, checkpoint)
    assert batches == [] and plan.num_done == 3
    assert (tmp_path / "manifest.jsonl").read_text() == before


def test_samples_of_other_settings_are_replaced_and_those_beyond_stay(checkpoint, tmp_path):
    store(tmp_path, rows_of(checkpoint, "generate.num_samples=5"))
    for words in (["generate.steps=7"], ["seed=3"], ["generate.precision=bf16"], ["generate.label=rain"]):
        store(tmp_path, rows_of(checkpoint, "generate.num_samples=5"))
        plan, batches = plan_of(tmp_path, checkpoint, *words)
        changed = [1] if words == ["generate.label=rain"] else [0, 1, 2]
        assert batches == [changed] and plan.num_replaced == len(changed)
        kept = [row["index"] for row in read_samples(str(tmp_path))]
        assert kept == [index for index in range(5) if index not in changed]


def test_inputs_that_were_refused_are_done(checkpoint, tmp_path):
    rows = rows_of(checkpoint)
    rows[1] |= {"error": "no_audio", "message": "said so"}
    store(tmp_path, rows)
    plan, batches = plan_of(tmp_path, checkpoint)
    assert batches == [] and plan.num_done == 3 and plan.errors == {"no_audio": 1}
    assert [row["index"] for row in read_samples(str(tmp_path))] == [0, 2]


def test_manifest_rows_begin_as_ever(checkpoint):
    row = rows_of(checkpoint, "generate.num_samples=2")[1]
    assert list(row)[:4] == ["index", "path", "seed", "label"] and json.loads(line_of(row)) == row
    assert row["path"] == sample_path("", 1).lstrip("/") == "000000/000000001.mp4"


def test_clips_of_another_size_than_the_models_are_refused(checkpoint):
    check_clips(tiny_config("generate.steps=3", "seed=4"), checkpoint.config)
    with pytest.raises(UserError, match=r"clip.height=64: .* makes clips with clip.height=32\. The planes"):
        check_clips(tiny_config("clip.height=64"), checkpoint.config)


def test_settings_of_sound_count_if_they_differ_from_the_checkpoints(checkpoint, tmp_path):
    own = rows_of(checkpoint, "mel.griffin_lim_iterations=4")  # the checkpoint's
    other = rows_of(checkpoint, "mel.griffin_lim_iterations=9")
    assert own == rows_of(checkpoint) and "settings" not in own[0]
    assert other[0]["settings"] == {"mel.griffin_lim_iterations": 9}
    for there, words, done in ((own, [], 3), (own, [9], 0), (other, [9], 3), (other, [], 0), (other, [8], 0)):
        store(tmp_path, there)
        asked = [f"mel.griffin_lim_iterations={number}" for number in words]
        assert plan_of(tmp_path, checkpoint, *asked)[0].num_done == done


AUDIO_SCALE = "generate.audio_guidance_scale"


@pytest.mark.parametrize(
    ("trained", "spelled_out", "other"),
    [
        (
            "diffusion.objective=flow",
            ["generate.solver=euler", "generate.schedule_shift=1", f"{AUDIO_SCALE}=1.5"],
            ["generate.solver=heun", "generate.schedule_shift=2", f"{AUDIO_SCALE}=2"],
        ),
        ("diffusion.time_shift=3", ["generate.schedule_shift=3"], ["generate.schedule_shift=1"]),
        (
            "diffusion.objective=ddpm",
            ["generate.solver=ddim", "generate.schedule_shift=1"],
            ["generate.solver=dpmpp_2m", "generate.schedule_shift=2"],
        ),
    ],
)
def test_a_default_that_is_spelled_out_is_no_other_setting(tmp_path, trained, spelled_out, other):
    checkpoint = load_checkpoint(save_tiny_stdit(str(tmp_path / "checkpoints"), tiny_config(trained)))
    ways = [[], *([word] for word in spelled_out), spelled_out, *([word] for word in other)]
    for there in ways:
        for asked in ways:
            store(tmp_path, rows_of(checkpoint, *there))
            before = (tmp_path / "manifest.jsonl").read_text()
            same = there == asked or not {*there, *asked} & {*other}
            plan, batches = plan_of(tmp_path, checkpoint, *asked)
            assert plan.num_done == (3 if same else 0) and plan.num_replaced == (0 if same else 3)
            assert ((tmp_path / "manifest.jsonl").read_text() == before) == same


def test_the_largest_cells_are_taken(checkpoint, tmp_path):
    (tmp_path / "rows.csv").write_text("path,start_seconds,seed\na.mp4,1e9,18446744073709551615\n")
    words = "generate.task=v2a", f"generate.listing={tmp_path / 'rows.csv'}"
    (row,) = wanted(checkpoint, *words)
    assert row["given"]["start_seconds"] == 1e9 and row["seed"] == 2**64 - 1


def test_labels_that_are_named_as_other_columns_stay_unused(checkpoint, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("label,labels\nrain,dog\n")
    words = f"generate.listing={tmp_path / 'rows.csv'}", "data.other_columns=[label,labels]"
    assert [row["label"] for row in wanted(checkpoint, *words)] == ["rain"]
    assert "not used: labels\n" in capsys.readouterr().out
