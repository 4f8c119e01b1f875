"""Sets of clips: which windows, in what order, at what size and rates; what cannot be read is counted."""

import pickle

import numpy as np
import pytest

from proav.errors import UserError
from proav.evaluate.clip_sets import View, files_below, reconstructions_of, samples_of, seen, segments_of
from proav.evaluate.yardsticks import YardstickPlan
from proav.generation.batch.manifest import write_part
from proav.media.container import Clip
from proav.runs.checkpoint import load_checkpoint
from tests.tiny import save_tiny_mdsa, tiny_config
from tests.train.tiny_run import write_segments


def test_files_become_windows_that_do_not_overlap(folders, view):
    clips = files_below("real", folders[0], view, max_clips=100)
    assert len(clips.items) == 2 * (3 * 2 + 2 * 3 + 2 * 4) and clips.num_sources == 14
    assert [item.id for item in clips.items[:2]] == ["rain/0.mp4@0", "rain/0.mp4@1"] and clips.items[
        0
    ].label == "rain"
    loaded = clips.load(clips.items[:3])
    assert all(
        one.clip.video.shape == (4, 32, 32, 3) and one.clip.fps == 5 and not one.problem for one in loaded
    )
    assert not np.array_equal(loaded[0].clip.video, loaded[1].clip.video)


def test_a_folder_is_a_label_in_the_composed_form(folders, view, tmp_path):
    (tmp_path / "Cafe\u0301").mkdir()
    (tmp_path / "Cafe\u0301" / "a.mp4").symlink_to(f"{folders[0]}/rain/0.mp4")
    clips = files_below("real", str(tmp_path), view, max_clips=9)
    assert {item.label for item in clips.items} == {"Caf\u00e9"}


def test_fewer_are_spread_over_all(folders, view):
    clips = files_below("real", folders[0], view, max_clips=10)
    assert len(clips.items) == 10 and {item.label for item in clips.items} == {"rain", "speech"}
    assert clips.identity != files_below("real", folders[0], view, max_clips=11).identity


def test_what_is_no_video_has_its_reason(folders, view):
    clips = files_below("made", folders[1], view, max_clips=100)
    (broken,) = [one for one in clips.load(clips.items) if one.problem]
    assert broken.clip is None and broken.problem.startswith("unreadable: ")
    with pytest.raises(UserError, match="no videos there; expected a folder"):
        files_below("made", folders[1] + "/nowhere", view, max_clips=1)


def test_segments_are_the_prepared_pictures_and_sound(tmp_path):
    config = tiny_config(f"run_dir={tmp_path}")
    write_segments(config)
    view = View(4, 5, 32, 32, 16_000, "crop")
    clips = segments_of("train", config, view, split="train", max_clips=100)
    assert len(clips.items) == 12 and clips.num_sources == 6
    (one,) = clips.load(clips.items[1:2])
    assert one.clip.video.shape == (4, 32, 32, 3) and one.clip.audio.shape == (12_800,)
    with pytest.raises(UserError, match="uses 10 frames a second.*clip.fps=5"):
        segments_of("train", config, View(4, 10, 32, 32, 16_000, "crop"), split="train", max_clips=1)


def test_a_clip_is_seen_at_the_views_size_and_rates():
    video = np.repeat(np.arange(0, 80, 10, dtype=np.uint8), 64 * 64 * 3).reshape(8, 64, 64, 3)
    clip = Clip(video, np.zeros(8 * 1600, np.float32), 10, 16_000)
    half = seen(clip, View(4, 5, 32, 32, 8_000, "crop"))
    assert half.video.shape == (4, 32, 32, 3) and half.video[:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert (half.fps, half.sample_rate, len(half.audio)) == (5, 8_000, 6_400)
    same = seen(clip, View(8, 10, 64, 64, 16_000, "crop"))
    assert np.array_equal(same.video, video)


def test_reconstructed_sound_is_made_with_the_settings_that_the_job_names(tmp_path):
    words = f"run_dir={tmp_path}", "data.frame_codec=raw"
    write_segments(tiny_config(*words))
    checkpoint = load_checkpoint(save_tiny_mdsa(str(tmp_path / "checkpoints"), tiny_config(*words)))
    view, found = View(4, 5, 32, 32, 16_000, "crop"), []
    for more in ([], ["mel.griffin_lim_iterations=4"], ["mel.griffin_lim_iterations=9"]):
        clips = reconstructions_of(
            "reconstructed", tiny_config(*words, *more), view, checkpoint, split="train", max_clips=1,
            device="cpu", yardsticks=YardstickPlan({}, "", needs="more clips"),
        )  # fmt: skip
        (made,) = pickle.loads(pickle.dumps(clips)).load(clips.items)
        found.append((clips.identity, made.clip))
    (own, clip), (same, clip_again), (other, other_clip) = found
    assert own == same and np.array_equal(clip.audio, clip_again.audio) and "settings" not in own
    assert other["settings"] == {"mel.griffin_lim_iterations": 9}
    assert np.array_equal(clip.video, other_clip.video) and not np.array_equal(clip.audio, other_clip.audio)


def test_samples_of_another_job_are_left_out_and_told(view, tmp_path, capsys):
    """generate.py keeps the rows beyond those that it is asked for."""
    config = tiny_config(f"run_dir={tmp_path}")
    with pytest.raises(UserError, match="no samples in"):
        samples_of("generated", config, view, max_clips=9)
    rows = [
        {"index": n, "path": f"{n}.mp4", "label": None, "task": "v2a" if n < 2 else "joint"} for n in range(6)
    ]
    write_part(f"{tmp_path}/samples", rows)
    clips = samples_of("generated", config, view, max_clips=9)
    assert [item.id for item in clips.items] == ["000000000", "000000001"]
    said = capsys.readouterr().out
    assert "OTHER SAMPLES: 4 of 6 samples" in said and "(4: task=joint instead of v2a)" in said
    assert len(samples_of("generated", config, view, max_clips=1).items) == 1
