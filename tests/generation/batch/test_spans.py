"""Spans of clips made anew by batch generation: the columns of a listing, and the clips of Python."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proav.errors import UserError
from proav.generation.batch.making import errors_of
from proav.generation.batch.manifest import line_of, list_parts, read_samples, stored_rows
from proav.generation.batch.plan import make_plan, manifest_row, pack, shared_values, unpack, wanted_rows
from proav.generation.pipeline import SoundingVideoPipeline
from proav.media.container import encode_clip, read_clip
from tests.generation.batch.listings import listing_of
from tests.generation.batch.test_making import SHAPE, maker_of
from tests.media.hostile_files import h264
from tests.tiny import tiny_config

INPAINT = "generate.task=inpaint", "generate.steps=2"


@pytest.mark.parametrize("stream", ["both", "video", "audio"])
def test_a_span_of_a_file_is_made_anew_as_in_python(checkpoint, file, tmp_path, stream):
    """The span is counted from where the given stretch begins."""
    given = read_clip(file, num_frames=4, start_seconds=0.4, fit="crop", **SHAPE)
    lines = "path,start_seconds,span,stream,label,seed,count", f'{file},0.4,"0.25,0.55",{stream},rain,5,2'
    make, rows = maker_of(checkpoint, tmp_path, *INPAINT, listing_of(tmp_path, *lines))
    assert make({"batch": pack(rows)})["error"] == ""
    expected = SoundingVideoPipeline.from_checkpoint(checkpoint.path)(
        2, task="inpaint", clip=given, span=(0.25, 0.55), stream=stream, label="rain", seed=5, steps=2,
        guidance_scale=1.5,
    )  # fmt: skip
    made = read_samples(str(tmp_path))
    assert [(row["span"], row["stream"]) for row in made] == [([0.25, 0.55], stream)] * 2
    assert [(tmp_path / row["path"]).read_bytes() for row in made] == [encode_clip(clip) for clip in expected]


def test_a_shorter_clip_with_a_span_is_that_of_python(checkpoint, file, tmp_path):
    lines = "path,span,seconds,seed,label", f'{file},"0,0.2",0.6,5,rain'
    make, rows = maker_of(checkpoint, tmp_path, *INPAINT, listing_of(tmp_path, *lines))
    assert make({"batch": pack(rows)})["error"] == ""
    given = read_clip(file, num_frames=4, fit="crop", **SHAPE)
    (expected,) = SoundingVideoPipeline.from_checkpoint(checkpoint.path)(
        task="inpaint", clip=given, span=(0, 0.2), seconds=0.6, label="rain", seed=5, steps=2,
        guidance_scale=1.5,
    )  # fmt: skip
    (row,) = read_samples(str(tmp_path))
    assert (tmp_path / row["path"]).read_bytes() == encode_clip(expected)


def test_spans_of_csv_and_parquet_are_the_same(checkpoint, tmp_path):
    lines = "path,span,stream", '/a.mp4,"0.4,0.8",', '/a.mp4,"[0, 0.2]",audio', '/a.mp4," 0.2 , 0.6 ",video'
    table = {
        "path": ["/a.mp4"] * 3,
        "span": [[0.4, 0.8], [0.0, 0.2], [0.2, 0.6]],
        "stream": [None, "audio", "video"],
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    by_csv, by_parquet = (
        list(wanted_rows(tiny_config(*INPAINT, listing), checkpoint))
        for listing in (listing_of(tmp_path, *lines), f"generate.listing={tmp_path / 'rows.parquet'}")
    )
    assert by_csv == by_parquet
    assert [(row["span"], row["stream"]) for row in by_csv] == [
        ([0.4, 0.8], "both"), ([0.0, 0.2], "audio"), ([0.2, 0.6], "video"),
    ]  # fmt: skip


BAD_SPANS = {
    "0.5,0.9": "span=(0.5, 0.9): expected begin and end in seconds within the 0.8 s of a clip",
    "0.4,0.4": "span=(0.4, 0.4): expected begin and end",
    "0,0.8": "leaves nothing of the clip",
    "0.4,0.40000001": "span=(0.4, 0.40000001) touches no frame",
    "": "span='': expected begin and end in seconds within the 0.8 s",
    "0.4": "span='0.4': expected begin and end",
    "-0.2,0.4": "span='-0.2,0.4': expected",
    "soon,0.4": "span='soon,0.4': expected",
    "0,0.2,0.4": "span='0,0.2,0.4': expected",
}


def test_bad_spans_are_rows_with_a_reason_and_the_others_are_made(checkpoint, file, tmp_path):
    mute = tmp_path / "mute.mp4"
    mute.write_bytes(h264(num_frames=8, file_format="mp4"))
    spans = [*BAD_SPANS, "0,0.4"]
    lines = [f'{file},"{span}",' for span in spans]
    lines += [f'{mute},"0,0.4",', f'{file},"0,0.6",audio', f'{file},"0,0.8",audio', f'{file},"0,0.8",video']
    words = *INPAINT, listing_of(tmp_path, "path,span,stream", *lines)
    make, rows = maker_of(checkpoint, tmp_path, *words)
    done = make({"batch": pack(rows)})
    assert done["error"] == ""
    reasons = {"bad_span": len(BAD_SPANS) + 2, "no_audio": 1}
    assert errors_of(unpack(done["batch"])) == reasons
    found = [row for row, _ in stored_rows(str(tmp_path), list_parts(str(tmp_path)))]
    for row, said in zip(found, BAD_SPANS.values(), strict=False):
        assert row["error"] == "bad_span" and said in row["message"]
    for row, kept, task in zip(found[-2:], ("sound", "picture"), ("v2a", "a2v"), strict=True):
        said = f"span=(0.0, 0.8) leaves nothing of the {kept}; write a shorter one, or task='{task}'"
        assert (row["error"], row["message"]) == ("bad_span", said)
    made = [len(BAD_SPANS), len(BAD_SPANS) + 2]
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("0*.mp4"))
    assert files == [found[index]["path"] for index in made]
    # refused rows are done; a repaired span is another sample
    config = tiny_config(*words)
    again = make_plan(str(tmp_path), wanted_rows(config, checkpoint), shared_values(config, checkpoint), 4)
    assert again.batches == [] and again.errors == reasons
    lines[0] = f'{file},"0.5,0.8",'
    listing_of(tmp_path, "path,span,stream", *lines)
    again = make_plan(str(tmp_path), wanted_rows(config, checkpoint), shared_values(config, checkpoint), 4)
    assert [row["index"] for batch in again.batches for row in unpack(batch)] == [0]


@pytest.mark.parametrize(
    ("task", "lines", "said"),
    [
        ("inpaint", ["path", "a.mp4"], "has no column span"),
        ("inpaint", ["path,span", ',"0,0.4"'], "row 1: the path is empty"),
        ("inpaint", ["path,span,stream", 'a.mp4,"0,0.4",mel'],
         "row 1: stream='mel'; expected one of video, audio, both, or nothing"),
        ("inpaint", ["path,span,seconds", 'a.mp4,"0,0.4",2'], "row 1: seconds=2: .* clips of one window"),
        ("inpaint", ["path,span,seconds", 'a.mp4,"0,0.4",file'], "row 1: seconds=file: task=inpaint is"),
    ],
)  # fmt: skip
def test_mistakes_in_a_listing_with_spans_are_reported_with_their_row(
    checkpoint, tmp_path, task, lines, said
):
    with pytest.raises(UserError, match=said):
        list(wanted_rows(tiny_config(f"generate.task={task}", listing_of(tmp_path, *lines)), checkpoint))


@pytest.mark.parametrize(("task", "path"), [("joint", "path, "), ("v2a", "")])
def test_spans_for_another_task_are_not_used(checkpoint, tmp_path, capsys, task, path):
    listing = listing_of(tmp_path, "path,span,stream", '/a.mp4,"0,0.4",audio')
    (row,) = wanted_rows(tiny_config(f"generate.task={task}", listing), checkpoint)
    assert "span" not in row and "stream" not in row
    assert f"not used: {path}span, stream" in capsys.readouterr().out


def test_windows_of_the_data_keep_their_manifest(checkpoint, tmp_path):
    """A manifest of an earlier version has no spans; its samples of the run's windows are done."""
    row = {"index": 0, "seed": 0, "label": None, "given": {"segment_id": "a", "start_frame": 4}}
    shared = shared_values(tiny_config(*INPAINT), checkpoint)
    stored = manifest_row(row, shared)
    assert not {"span", "stream", "texts"} & stored.keys()
    (tmp_path / "000000").mkdir()
    (tmp_path / stored["path"]).touch()
    (tmp_path / "manifest.jsonl").write_text(line_of(stored))
    assert make_plan(str(tmp_path), [row], shared, 4).num_done == 1
