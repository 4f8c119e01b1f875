"""Making a batch: one Maker for all steps and one for each step write the same files; broken inputs."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from proav.data.store.shards import SegmentStore
from proav.errors import MediaError, UserError
from proav.generation.batch.making import STEPS, Maker, errors_of, recipe_of
from proav.generation.batch.manifest import list_parts, read_samples, stored_rows
from proav.generation.batch.plan import pack, shared_values, unpack, wanted_rows
from proav.generation.finishing import finish_clips
from proav.generation.given_files import GivenDecoder
from proav.generation.given_windows import GivenWindows
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.media.container import encode_clip, read_clip, read_sound
from proav.media.melframes import MelFrames
from proav.runs.checkpoint import load_checkpoint
from tests.media.flash_and_beep import beep_times, make_film, regular
from tests.media.hostile_files import h264, switching_h264, wav, with_damaged_sound
from tests.synthetic_clips import make_clip
from tests.tiny import save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_segments

SHAPE = {"fps": 5, "sample_rate": 16_000, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), tiny_config()))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files that are good, and files that hold no clip for one task or another."""
    folder = tmp_path_factory.mktemp("inputs")
    make_clip(1, seconds=2.0).save(str(folder / "good.mp4"))
    (folder / "good.wav").write_bytes(wav(2.0))
    (folder / "almost.wav").write_bytes(wav(0.75))  # 0.05 s are missing
    (folder / "short.wav").write_bytes(wav(0.3))
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").touch()
    (folder / "mute.mp4").write_bytes(h264(num_frames=8, file_format="mp4"))
    (folder / "huge.h264").write_bytes(switching_h264(width=16_000, height=16_000))
    return folder


def maker_of(checkpoint, folder, *words, steps=STEPS):
    """(a Maker, the rows of the plan)"""
    config = tiny_config(*words)
    shared = shared_values(config, checkpoint)
    recipe = recipe_of(config, checkpoint.config, checkpoint.path, str(folder), shared)
    return Maker(recipe, steps), list(wanted_rows(config, checkpoint))


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """A run with two windows of each of six segments, and a checkpoint that makes clips by masked tasks."""
    words = (
        f"run_dir={tmp_path_factory.mktemp('run')}",
        "diffusion.task_weights={joint: 1, continue: 1, inpaint: 1}",
        "data.frame_codec=raw",
        "evaluate.split=train",
        "generate.steps=1",
    )
    config = tiny_config(*words)
    write_segments(config)
    save_tiny_stdit(f"{config.run_dir}/stdit/checkpoints", config)
    return words, load_checkpoint(f"{config.run_dir}/stdit/checkpoints")


def listing_of(tmp_path, *rows) -> str:
    (tmp_path / "rows.csv").write_text("\n".join(["path,label,seed,count", *rows]) + "\n")
    return f"generate.listing={tmp_path / 'rows.csv'}"


def test_one_maker_or_one_for_each_step_make_the_same_files(checkpoint, inputs, tmp_path):
    words = [
        "generate.task=a2v",
        listing_of(tmp_path, f"{inputs}/good.wav,rain,5,2", f"{inputs}/text.mp4,,,1"),
    ]
    alone, rows = maker_of(checkpoint, tmp_path / "alone", *words)
    assert alone({"batch": pack(rows)})["error"] == ""
    row = {"batch": pack(rows)}
    for step in STEPS:
        row = maker_of(checkpoint, tmp_path / "apart", *words, steps=[step])[0](row)
    assert row["error"] == "" and row["arrays"] == b""
    assert errors_of(unpack(row["batch"])) == {"unreadable": 1}
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*"))
    assert [path.name for path in files] == ["000000000.mp4", "000000001.mp4", "part-000000000.jsonl"]
    for path in files:
        assert (tmp_path / "alone" / path).read_bytes() == (tmp_path / "apart" / path).read_bytes()


def test_a_row_with_a_seed_is_what_python_makes_with_that_seed(checkpoint, inputs, tmp_path):
    make, rows = maker_of(
        checkpoint, tmp_path, "generate.task=v2a", listing_of(tmp_path, f"{inputs}/good.mp4,rain,5,2")
    )
    make({"batch": pack(rows)})
    clip = read_clip(str(inputs / "good.mp4"), num_frames=4, fit="crop", **SHAPE)
    made = SoundingVideoPipeline.from_checkpoint(checkpoint.path)(
        2, label="rain", task="v2a", seed=5, steps=3, guidance_scale=1.5, clip=clip
    )
    for row, expected in zip(read_samples(str(tmp_path)), made, strict=True):
        assert (tmp_path / row["path"]).read_bytes() == encode_clip(expected)


def test_files_are_the_same_however_they_are_batched(checkpoint, tmp_path):
    for name in ("together", "apart"):
        make, rows = maker_of(checkpoint, tmp_path / name)
        for batch in [rows] if name == "together" else [[row] for row in rows]:
            make({"batch": pack(batch)})
    for row in read_samples(str(tmp_path / "together")):
        a, b = (read_clip(str(tmp_path / name / row["path"]), **SHAPE) for name in ("together", "apart"))
        difference = abs(a.video.astype(int) - b.video.astype(int))
        # a rounded pixel may change its H.264 block a little
        assert difference.max() <= 48 and difference.mean() < 0.5
        # A rounding in loud noise can change AAC's decisions; another sample would differ by 0.5 and more
        assert abs(a.audio - b.audio).mean() < 0.05


@pytest.mark.parametrize(
    ("task", "broken"),
    [
        ("a2v", {"absent.wav": "not_found", "empty.mp4": "empty_file", "text.mp4": "unreadable",
                 "mute.mp4": "no_audio", "short.wav": "too_short"}),
        ("v2a", {"absent.mp4": "not_found", "good.wav": "no_video", "huge.h264": "too_large"}),
    ],
)  # fmt: skip
def test_broken_inputs_become_rows_with_a_reason(checkpoint, inputs, tmp_path, task, broken):
    good = "almost.wav" if task == "a2v" else "mute.mp4"
    names = [*broken, good]
    (tmp_path / "000000").mkdir()
    (tmp_path / "000000" / "000000000.mp4").touch()  # left by a run with other settings
    words = [f"generate.task={task}", listing_of(tmp_path, *(f"{inputs}/{name},,," for name in names))]
    make, rows = maker_of(checkpoint, tmp_path, *words)
    done = make({"batch": pack(rows)})
    assert done["error"] == "" and errors_of(unpack(done["batch"])).total() == len(broken)
    found = {row["given"]["path"].rsplit("/", 1)[-1]: row for row, _ in stored_rows(str(tmp_path))}
    assert {name: row["error"] for name, row in found.items() if "error" in row} == broken
    assert all(name in found[name]["message"] for name in broken)
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4")]
    assert files == [found[good]["path"]]


def test_a_stretch_that_begins_far_behind_the_end_is_a_row_with_a_reason(checkpoint, inputs, tmp_path):
    (tmp_path / "rows.csv").write_text(f"path,start_seconds\n{inputs}/good.mp4,1e9\n{inputs}/good.mp4,0\n")
    for task in ("a2v", "v2a"):
        words = f"generate.task={task}", f"generate.listing={tmp_path / 'rows.csv'}"
        make, rows = maker_of(checkpoint, tmp_path / task, *words)
        done = make({"batch": pack(rows)})
        assert done["error"] == "" and errors_of(unpack(done["batch"])) == {"too_short": 1}


def test_defaults_that_are_spelled_out_make_the_same_files(checkpoint, tmp_path):
    spelled_out = ["generate.solver=euler", "generate.schedule_shift=1", "generate.audio_guidance_scale=1.5"]
    for name, words in (("unset", []), ("set", spelled_out)):
        make, rows = maker_of(checkpoint, tmp_path / name, *words)
        assert make({"batch": pack(rows)})["error"] == ""
    for row in read_samples(str(tmp_path / "unset")):
        assert (tmp_path / "unset" / row["path"]).read_bytes() == (
            tmp_path / "set" / row["path"]
        ).read_bytes()


def test_a_batch_of_nothing_but_broken_inputs_is_done(checkpoint, inputs, tmp_path):
    words = ["generate.task=v2a", listing_of(tmp_path, f"{inputs}/text.mp4,,,2")]
    make, rows = maker_of(checkpoint, tmp_path, *words)
    assert make({"batch": pack(rows)})["error"] == "" and len(list(stored_rows(str(tmp_path)))) == 2


def test_a_given_sound_begins_where_the_listing_says(checkpoint, inputs):
    config = tiny_config("generate.task=a2v")
    whole = read_sound(str(inputs / "good.wav"), sample_rate=16_000)
    (tone,) = GivenDecoder(config).rows(source(inputs / "good.wav", 0.5))
    assert (tone["audio"] == whole[8000 : 8000 + 12_800]).all()
    with pytest.raises(MediaError, match="holds 0.50 s of sound from 1.5 s on"):
        list(GivenDecoder(config).rows(source(inputs / "good.wav", 1.5)))


def source(path, start_seconds, end_seconds=None):
    from proav.data.sources.finding import SourceRow

    return SourceRow(
        id="", key=str(path), path=str(path), start_seconds=start_seconds, end_seconds=end_seconds
    )


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Films with 2 s of pictures and unlike sounds, and one without any."""
    folder = tmp_path_factory.mktemp("films")
    sounds = {
        "mute": {"audio": None}, "short": {"sound_to": 0.5}, "late": {"sound_from": 1.5},
        "after": {"sound_from": 5.0, "sound_to": 6.0}, "long": {"sound_to": 9.0},
    }  # fmt: skip
    for name, sound in sounds.items():
        shades = {"paint": lambda time: np.full((64, 80, 3), int(120 * time), np.uint8)}
        make_film(folder / f"{name}.mkv", times=regular(10, 2), **shades, **sound)
    damaged = with_damaged_sound((folder / "long.mkv").read_bytes())
    (folder / "damaged.mkv").write_bytes(damaged)
    return folder


@pytest.mark.parametrize("name", ["short", "late", "after", "long", "damaged"])
def test_pictures_are_given_whole_whatever_sound_the_file_had(films, name):
    """As long as a window, as long as the file, and from a later start on."""
    for task, start, end, frames in (
        ("v2a", 0.0, None, 4), ("v2a", 0.0, 2.0, 10), ("v2a", 0.0, math.inf, 10), ("v2a", 0.8, math.inf, 6),
        ("i2av", 1.0, None, 1),
    ):  # fmt: skip
        decoder = GivenDecoder(tiny_config(f"generate.task={task}"))
        (found,) = decoder.rows(source(films / f"{name}.mkv", start, end))
        (mute,) = decoder.rows(source(films / "mute.mkv", start, end))
        assert np.array_equal(found["video"], mute["video"]) and len(found["video"]) == frames, (task, start)


def test_sound_is_given_whole_whatever_pictures_the_file_had(films, tmp_path):
    times = [Fraction(0), Fraction(1, 10)], regular(10, 2, first=7)
    paths = [
        make_film(tmp_path / f"{place}.mkv", times=own, beeps=(3.0,), sound_to=9.0)
        for place, own in enumerate(times)
    ]
    decoder = GivenDecoder(tiny_config("generate.task=a2v"))
    for path in (*paths, films / "long.mkv"):
        for start, end, seconds in ((0.0, math.inf, 9.0), (2.0, 8.0, 6.0)):
            (found,) = decoder.rows(source(path, start, end))
            assert len(found["audio"]) == 16_000 * seconds
            if path in paths:
                assert beep_times(found["audio"], 16_000, 1) == [pytest.approx(3.0 - start, abs=0.01)]


def test_a_file_that_cannot_be_written_is_a_mistake_that_is_reported(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    make, rows = maker_of(checkpoint, tmp_path / "file", "generate.steps=1")
    done = make({"batch": pack(rows[:1])})
    assert "cannot write" in json.loads(done["error"])[1]
    assert make(done) == done  # a later stage passes it on


def test_bf16_is_near_fp32_and_not_the_same(checkpoint):
    request = SampleRequest(label="rain")
    exact, rounded = (
        SoundingVideoPipeline.from_checkpoint(checkpoint.path, precision=precision).sample_streams([request])[
            1
        ]
        for precision in ("fp32", "bf16")
    )
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().mean() < 0.1 * exact.std()


def test_windows_of_the_data_are_given_in_turn(masked_run, tmp_path):
    words, checkpoint = masked_run
    asked = (*words, "generate.task=inpaint", "generate.num_samples=14")
    _, rows = maker_of(checkpoint, tmp_path, *asked)
    store = SegmentStore(tiny_config(*words).data_folder)
    assert [row["given"]["start_frame"] for row in rows] == [0, 4] * 7
    assert rows[12]["given"] == rows[0]["given"] != rows[2]["given"]
    labels = dict(zip(store.column("id"), store.column("label"), strict=True))
    assert all(row["label"] == labels[row["given"]["segment_id"]] for row in rows)
    _, named = maker_of(checkpoint, tmp_path, *asked, "generate.label=speech")
    assert {row["label"] for row in named} == {"speech"}
    with pytest.raises(UserError, match="task='i2av': tiny was not trained for it"):
        maker_of(checkpoint, tmp_path, *words, "generate.task=i2av")


@pytest.mark.parametrize("task", ["v2a", "continue", "inpaint"])
def test_a_window_is_given_as_it_is_stored(masked_run, tmp_path, task):
    words, checkpoint = masked_run
    asked = (*words, f"generate.task={task}", "generate.num_samples=2")
    make, rows = maker_of(checkpoint, tmp_path, *asked)
    store = SegmentStore(tiny_config(*words).data_folder)
    given = {"segment_id": store.column("id")[1], "start_frame": 4}
    streams = GivenWindows(make.steps[0].recipe.data_folder, checkpoint.config, task).streams(given)
    frames = 2 if task == "continue" else 4
    window = store.window(1, 4, frames)
    assert np.array_equal(streams["video"], window["video"])
    assert np.array_equal(streams["audio"], window["audio"])
    with pytest.raises(UserError, match="has no segment nowhere any more"):
        make.steps[0].windows.streams(given | {"segment_id": "nowhere"})
    assert make({"batch": pack(rows)})["error"] == ""
    for row in stored_rows(str(tmp_path), list_parts(str(tmp_path))):
        clip = read_clip(str(tmp_path / row[0]["path"]), **SHAPE)
        assert clip.video.shape[0] == 4


def test_a_clip_that_goes_on_from_a_file_is_what_python_makes(masked_run, inputs, tmp_path):
    words, checkpoint = masked_run
    listing = listing_of(tmp_path, f"{inputs}/good.mp4,rain,5,1")
    make, rows = maker_of(checkpoint, tmp_path, *words, "generate.task=continue", listing)
    rows, arrays = make.steps[1](*make.steps[0](rows, {}))
    (window,) = make.steps[0].recipe.windows([(0, rows[0])], arrays)
    streams = (torch.from_numpy(arrays[name]) for name in ("video", "mel"))
    (made,) = finish_clips(checkpoint.config, MelFrames(checkpoint.config), [window], *streams)
    clip = read_clip(str(inputs / "good.mp4"), num_frames=2, fit="crop", **SHAPE)
    (alone,) = SoundingVideoPipeline.from_checkpoint(checkpoint.path)(
        task="continue", clip=clip, label="rain", seed=5, steps=1, guidance_scale=1.5
    )
    assert np.array_equal(made.video, alone.video) and np.array_equal(made.audio, alone.audio)


@pytest.mark.parametrize("seconds", [[], ["generate.seconds=1.2"]])
def test_sound_is_made_with_the_settings_that_the_job_names(masked_run, tmp_path, seconds):
    """Whether the sound is made by `Finish`, or by `Denoise` window by window."""
    words, checkpoint = masked_run
    named, found = {"mel.griffin_lim_iterations": 9}, {}
    for name, more in (("own", []), ("named", [f"{key}={value}" for key, value in named.items()])):
        make, rows = maker_of(checkpoint, tmp_path / name, *words, *more, *seconds)
        assert make({"batch": pack(rows[:1])})["error"] == ""
        found[name] = (tmp_path / name / "000000" / "000000000.mp4").read_bytes()
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint.path, settings=named)
    length = {"seconds": 1.2} if seconds else {}
    (clip,) = pipeline(label="rain", steps=1, guidance_scale=1.5, **length)
    assert found["named"] == encode_clip(clip) != found["own"]


def test_fresh_noise_is_as_the_job_names_it(tmp_path):
    trained = tiny_config("diffusion.objective=ddpm")
    checkpoint = load_checkpoint(save_tiny_stdit(str(tmp_path / "checkpoints"), trained))
    words = "diffusion.objective=ddpm", "diffusion.ddim_eta=0.5"
    make, _ = maker_of(checkpoint, tmp_path, *words)
    assert make.steps[0].pipeline.process.eta == 0.5
