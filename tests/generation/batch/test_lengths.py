"""Clips of any length by batch generation: the files are those of Python.

That any pools make them, and that a killed job goes on, is tested in `test_job.py`.
"""

import io
import itertools
import math

import pytest

from proav.data.sources.finding import SourceRow
from proav.errors import MediaError, UserError
from proav.generation.batch.manifest import line_of, list_parts, read_samples, stored_rows
from proav.generation.batch.plan import make_plan, manifest_row, pack, shared_values, unpack, wanted_rows
from proav.generation.given_files import GivenDecoder
from proav.generation.pipeline import SoundingVideoPipeline
from proav.media.container import encode_clip, read_clip
from proav.runs.checkpoint import load_checkpoint
from tests.generation.batch.listings import ALL_TASKS, listing_of
from tests.generation.batch.test_making import SHAPE, maker_of
from tests.media.flash_and_beep import make_film, regular
from tests.tiny import save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_segments


def made_by_python(checkpoint, count, **settings):
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint.path)
    clips = pipeline(count, seed=5, label="rain", guidance_scale=1.5, steps=2, **settings)
    return [encode_clip(clip) for clip in clips]


@pytest.mark.parametrize(("task", "frames"), [("joint", 0), ("a2v", 9), ("v2a", 9), ("continue", 2)])
def test_clips_of_a_length_are_those_of_python(checkpoint, file, tmp_path, task, frames):
    """frames: how many frames of the file are given."""
    listing = listing_of(tmp_path, "path,label,seconds,seed,count", f"{file},rain,1.8,5,2")
    make, rows = maker_of(checkpoint, tmp_path, "generate.steps=2", f"generate.task={task}", listing)
    assert make({"batch": pack(rows)})["error"] == ""
    given = {"clip": read_clip(file, num_frames=frames, fit="crop", **SHAPE)} if frames else {}
    expected = made_by_python(checkpoint, 2, task=task, seconds=1.8, **given)
    made = read_samples(str(tmp_path))
    assert [(tmp_path / sample["path"]).read_bytes() for sample in made] == expected
    assert [sample["seconds"] for sample in made] == [1.8, 1.8]


@pytest.mark.parametrize("task", ["a2v", "v2a"])
def test_a_clip_as_long_as_its_file_is_that_of_python(checkpoint, file, tmp_path, task):
    """The file has 10 frames. The last rows begin later; of the last one a single frame is left."""
    lines = "path,seconds,start_seconds", f"{file},file,", f"{file},,0.4", f"{file},0.8,", f"{file},file,1.8"
    words = "generate.steps=2", f"generate.task={task}", "generate.seconds=file", "generate.label=rain"
    make, rows = maker_of(checkpoint, tmp_path, *words, listing_of(tmp_path, *lines))
    assert [row["seconds"] for row in rows] == ["file", "file", 0.8, "file"]
    assert make({"batch": pack(rows)})["error"] == ""
    made = [row for row in read_samples(str(tmp_path)) if "error" not in row]
    clips = [read_clip(str(tmp_path / row["path"]), **SHAPE) for row in made]
    assert [len(clip.video) for clip in clips] == [10, 8, 4, 1]
    given = read_clip(file, fit="crop", **SHAPE)
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint.path)
    settings = {"steps": 2, "guidance_scale": 1.5, "task": task, "seconds": 2.0}
    (whole,) = pipeline(1, label="rain", clip=given, **settings)
    expected = read_clip(io.BytesIO(encode_clip(whole)), **SHAPE)
    assert abs(clips[0].video.astype(int) - expected.video).mean() < 0.5  # up to the rounding of kernels


def test_a_clip_is_as_long_as_the_pictures_of_its_file_if_their_old_sound_is_shorter(checkpoint, tmp_path):
    path = make_film(tmp_path / "film.mp4", times=regular(10, 2), sound_to=0.5)
    lines = "path,seconds", f"{path},file", f"{path},1.8", f"{path},"
    words = "generate.steps=1", "generate.task=v2a", listing_of(tmp_path, *lines)
    make, rows = maker_of(checkpoint, tmp_path, *words)
    assert make({"batch": pack(rows)})["error"] == ""
    made = read_samples(str(tmp_path))
    clips = [read_clip(str(tmp_path / row["path"]), **SHAPE) for row in made]
    assert [len(clip.video) for clip in clips] == [10, 9, 4]


def test_unlike_lengths_share_a_batch(checkpoint, tmp_path):
    lines = "seconds,label,seed", "1.8,rain,5", ",rain,5", "0.4,rain,5"
    make, rows = maker_of(checkpoint, tmp_path, "generate.steps=2", listing_of(tmp_path, *lines))
    assert [row.get("seconds") for row in rows] == [1.8, None, 0.4]
    assert make({"batch": pack(rows)})["error"] == ""
    clips = [read_clip(str(tmp_path / row["path"]), **SHAPE) for row in read_samples(str(tmp_path))]
    assert [len(clip.video) for clip in clips] == [9, 4, 2]
    (window,) = (row for row in rows if "seconds" not in row)
    alone, _ = maker_of(checkpoint, tmp_path / "alone", "generate.steps=2")
    assert alone({"batch": pack([window])})["error"] == ""
    (row,) = read_samples(str(tmp_path / "alone"))
    difference = abs(read_clip(str(tmp_path / "alone" / row["path"]), **SHAPE).video.astype(int)
                     - clips[1].video)  # fmt: skip
    assert difference.mean() < 0.5  # up to the rounding of matrix kernels


def test_the_setting_holds_for_rows_without_a_length(checkpoint, tmp_path):
    listing = listing_of(tmp_path, "seconds,label", "1.8,", ",rain")
    rows = list(wanted_rows(tiny_config("generate.seconds=3", listing), checkpoint))
    assert [row["seconds"] for row in rows] == [1.8, 3.0]
    rows = list(wanted_rows(tiny_config("generate.seconds=3", "generate.num_samples=2"), checkpoint))
    assert [(row["index"], row["seconds"]) for row in rows] == [(0, 3.0), (1, 3.0)]


def test_samples_of_another_length_are_replaced(checkpoint, tmp_path):
    def plan(*words):
        config = tiny_config("generate.num_samples=2", *words)
        shared = shared_values(config, checkpoint)
        return make_plan(str(tmp_path), wanted_rows(config, checkpoint), shared, 2), shared

    first, shared = plan("generate.seconds=1.8")
    lines = [manifest_row(row, shared) for row in unpack(first.batches[0])]
    (tmp_path / "manifest.jsonl").write_text("".join(map(line_of, lines)))
    (tmp_path / "000000").mkdir()
    for row in lines:
        (tmp_path / row["path"]).touch()
    assert plan("generate.seconds=1.8")[0].num_done == 2
    assert plan("generate.seconds=2")[0].num_replaced == 2
    (tmp_path / "manifest.jsonl").write_text("".join(map(line_of, lines)))
    assert plan()[0].num_replaced == 2


def test_a_start_beyond_the_end_of_a_file_is_refused_at_any_frame_rate(file):
    """A frame of 0.1 s is no longer than the sound that may be missing at the end."""
    decoder = GivenDecoder(tiny_config("clip.fps=10", "mel.hop=100", "generate.task=a2v"))
    row = SourceRow(id="a", key="a", path=file, start_seconds=5.0, end_seconds=math.inf)
    with pytest.raises(MediaError, match="holds 0.00 s of sound from 5 s on"):
        next(decoder.rows(row))


def test_a_file_that_ends_too_early_for_its_row_is_a_row_with_a_reason(checkpoint, file, tmp_path):
    lines = "path,seconds,start_seconds", f"{file},1.8,", f"{file},1.8,0.4", f"{file},2.4,"
    for task in ("a2v", "v2a"):
        folder = tmp_path / task
        make, rows = maker_of(
            checkpoint, folder, "generate.steps=1", f"generate.task={task}", listing_of(tmp_path, *lines)
        )
        assert make({"batch": pack(rows)})["error"] == ""
        found = [row for row, _ in stored_rows(str(folder), list_parts(str(folder)))]
        assert [row.get("error") for row in found] == [None, "too_short", "too_short"], task


@pytest.mark.parametrize(
    ("words", "lines", "said"),
    [
        (["generate.seconds=0.1"], [], "generate.seconds=0.1: expected at least the 0.2 s of a frame"),
        ([], ["seconds", "0"], "row 1: seconds=0: expected at least the 0.2 s of a frame"),
        (["generate.seconds=1e308"], [], "generate.seconds=1e.308: expected at least"),
        ([], ["seconds", "1e308"], "row 1: seconds='1e308'; expected seconds from 0 up to .*, or file"),
        (
            [],
            ["seconds", "2", "soon"],
            "row 2: seconds='soon'; expected .* or nothing, or file",
        ),
        ([], ["seconds", "file"], "row 1: seconds=file: task=joint is given no"),
        (
            ["generate.task=i2av"],
            ["path,seconds", "a.png,file"],
            "row 1: seconds=file: .*i2av is given no",
        ),
        (["generate.seconds=file"], [], "^generate.seconds=file: task=joint is given no"),
        (
            ["generate.task=v2a", "generate.seconds=file"],
            [],
            "seconds=file needs generate.listing=FILE",
        ),
        (["generate.task=continue"], ["path,seconds", "a.mp4,0.4"], "row 1: .* has 0.4 s already"),
        (["generate.task=inpaint", "generate.seconds=2"], [], "seconds=2: .* makes clips of one window"),
        (
            ["generate.task=v2a", "generate.seconds=2"],
            [],
            "generate.seconds=2: windows given for generate.task=v2a have 0.8 s; .*by generate.listing=FILE",
        ),
    ],
)
def test_lengths_that_cannot_be_made_are_reported(checkpoint, tmp_path, words, lines, said):
    listing = [listing_of(tmp_path, *lines)] if lines else []
    with pytest.raises(UserError, match=said):
        list(wanted_rows(tiny_config(*words, *listing), checkpoint))


def test_a_model_without_the_task_of_later_windows_says_so(tmp_path):
    own = load_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config()))
    with pytest.raises(UserError, match="^generate.seconds=2: num_windows=4: .* not trained for it"):
        list(wanted_rows(tiny_config("generate.seconds=2"), own))
    assert len(list(wanted_rows(tiny_config("generate.seconds=0.6"), own))) == 3
    words = "generate.task=v2a", "generate.seconds=file", listing_of(tmp_path, "path", "a.mp4")
    with pytest.raises(UserError, match="row 1: seconds=file: num_windows=2: .* not trained for it"):
        list(wanted_rows(tiny_config(*words), own))


def test_a_stored_clip_goes_on(checkpoint, tmp_path):
    config = tiny_config(ALL_TASKS, f"run_dir={tmp_path}", "data.frame_codec=raw", "evaluate.split=train")
    write_segments(config)
    words = [
        ALL_TASKS,
        f"run_dir={tmp_path}",
        "evaluate.split=train",
        "generate.steps=1",
        "generate.seconds=2",
    ]
    words += ["generate.task=continue", "generate.num_samples=1"]
    make, rows = maker_of(checkpoint, tmp_path / "samples", *words)
    assert make({"batch": pack(rows)})["error"] == ""
    (row,) = read_samples(str(tmp_path / "samples"))
    assert len(read_clip(str(tmp_path / "samples" / row["path"]), **SHAPE).video) == 10


def test_a_job_that_ends_within_a_clip_leaves_nothing_of_it(checkpoint, tmp_path):
    words = "generate.steps=1", "generate.seconds=2", "generate.num_samples=1"
    make, rows = maker_of(checkpoint, tmp_path, *words)
    pipeline = make.steps[0].pipeline

    def ends_after_two_windows(requests):
        yield from itertools.islice(SoundingVideoPipeline.pieces(pipeline, requests), 2)
        raise KeyboardInterrupt

    pipeline.pieces = ends_after_two_windows
    with pytest.raises(KeyboardInterrupt):
        make({"batch": pack(rows)})
    assert not list(tmp_path.rglob("*.*"))
