import contextlib
import io
import itertools
import os
import shutil
import signal
from functools import partial

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from proav.data.feeds import remote_feed
from proav.data.feeds.feed import ClipFeed, evaluation_windows, evenly_spread
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.shards import SegmentStore
from proav.errors import UserError
from tests.tiny import tiny_config
from tests.train.tiny_run import write_segments

BATCH = 4


@pytest.fixture(scope="module")
def feed(data_dir, run_config):
    return ClipFeed(data_dir, run_config, seed=3, batch_size=BATCH, flip=True)


def join(parts):
    return {
        key: torch.cat([part[key] for part in parts])
        if torch.is_tensor(parts[0][key])
        else sum((part[key] for part in parts), [])
        for key in parts[0]
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert (
            torch.equal(first[key], second[key]) if torch.is_tensor(first[key]) else first[key] == second[key]
        ), key


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_make_the_same_batch(feed, world):
    assert_same(join([feed.batch(5, rank=rank, world=world) for rank in range(world)]), feed.batch(5))


def test_a_fresh_feed_resumes_anywhere(feed, data_dir, run_config):
    again = ClipFeed(data_dir, run_config, seed=3, batch_size=BATCH, flip=True)
    resumed = list(itertools.islice(again.iterate(4), 3))
    for step, batch in enumerate(resumed, 4):
        assert_same(batch, feed.batch(step))


def test_batch_size_only_cuts_the_same_sequence(feed, data_dir, run_config):
    double = ClipFeed(data_dir, run_config, seed=3, batch_size=2 * BATCH, flip=True)
    assert_same(join([feed.batch(2), feed.batch(3)]), double.batch(1))


@pytest.mark.parametrize("world", [1, 2])
def test_loading_processes_change_nothing(feed, world):
    assert_loaded_the_same(feed, world, loader="processes")


@pytest.mark.ray
@pytest.mark.parametrize("world", [1, 2])
def test_loading_actors_change_nothing(feed, world, ray_local):
    assert_loaded_the_same(feed, world, loader="actors")


def assert_loaded_the_same(feed, world, loader):
    """Steps 3 to 6 of all ranks together equal the feed's own. They go past the end of the first epoch."""
    assert feed.num_slots < 7 * BATCH
    parts = [
        load(feed, 4, start_step=3, rank=rank, world=world, loader_workers=2, loader=loader)
        for rank in range(world)
    ]
    for step, batches in enumerate(zip(*parts, strict=True), 3):
        assert_same(join(list(batches)), feed.batch(step))


def load(feed, count, start_step=0, **words):
    with contextlib.closing(feed.iterate(start_step, **words)) as batches:
        return list(itertools.islice(batches, count))


@pytest.mark.ray
def test_a_killed_actor_costs_no_batch(feed, ray_local):
    with contextlib.closing(feed.iterate(loader_workers=2, loader="actors")) as batches:
        seen = [next(batches)]
        (victim, *_) = [
            process
            for process in psutil.Process().children(recursive=True)
            if process.name().startswith("ray::_Preparer")
        ]
        os.kill(victim.pid, signal.SIGKILL)
        seen += itertools.islice(batches, 11)
    for step, batch in enumerate(seen):
        assert_same(batch, feed.batch(step))


class KillsItsProcess:
    """Part of a feed that kills the process that calls it, as a broken decoder would."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __call__(self, positions: np.ndarray) -> dict:
        assert os.getpid() != self.home
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(data_dir, run_config):
    feed = ClipFeed(data_dir, run_config, batch_size=BATCH)
    feed.at = KillsItsProcess(os.getpid())
    return feed


def test_a_killed_loading_process_is_reported(data_dir, run_config):
    with pytest.raises(
        RuntimeError,
        match=r"a loading process was killed .*write fewer train.loader_workers, or train.loader=actors",
    ):
        load(deadly(data_dir, run_config), 1, loader_workers=1)


@pytest.mark.ray
def test_a_batch_that_kills_every_actor_is_reported(data_dir, run_config, ray_local, monkeypatch):
    monkeypatch.setattr(remote_feed, "MAX_DEATHS", 2)
    with pytest.raises(RuntimeError, match="step 0, worker 0: every actor that prepared this batch died"):
        load(deadly(data_dir, run_config), 1, loader_workers=1, loader="actors")


def test_an_epoch_holds_each_slot_once_and_long_segments_count_more(feed):
    indices, starts = feed.windows(np.arange(feed.num_slots))
    lengths = feed.store.column("num_frames")
    segments, counts = np.unique(indices, return_counts=True)
    assert segments.tolist() == [
        index for index in feed.store.indices(split="train").tolist() if lengths[index] >= 4
    ]
    assert counts.tolist() == (lengths[segments] // 4).tolist()
    assert np.all(starts >= 0) and np.all(starts + 4 <= lengths[indices])
    later, _ = feed.windows(np.arange(feed.num_slots, 2 * feed.num_slots))
    assert sorted(later.tolist()) == sorted(indices.tolist()) and later.tolist() != indices.tolist()


def test_over_epochs_every_start_occurs(feed):
    indices, starts = feed.windows(np.arange(60 * feed.num_slots))
    longest = int(indices[np.argmax(feed.store.column("num_frames")[indices])])
    assert set(starts[indices == longest].tolist()) == set(
        range(feed.store.rows[longest]["num_frames"] - 4 + 1)
    )


def test_batches_hold_what_the_store_holds(feed):
    batch = feed.batch(7)
    indices, starts = feed.windows(feed.positions(7))
    assert (
        batch["video"].dtype == torch.uint8
        and batch["mel"].dtype == torch.float32
        and batch["label"].dtype == torch.int64
    )
    for place, (index, start) in enumerate(zip(indices.tolist(), starts.tolist(), strict=True)):
        window = feed.store.window(index, start, 4)
        video = window["video"][:, :, ::-1] if batch["flipped"][place] else window["video"]
        assert np.array_equal(batch["video"][place].numpy(), video) and np.array_equal(
            batch["mel"][place].numpy(), window["mel"].astype(np.float32)
        )
        assert (
            batch["segment_id"][place] == feed.store.rows[index]["id"]
            and batch["label"][place] == feed.store.label_indices()[index]
        )


def test_seeds_differ_and_flips_are_optional(feed, data_dir, run_config):
    other = ClipFeed(data_dir, run_config, seed=4, batch_size=BATCH)
    positions = np.arange(40)
    assert not np.array_equal(other.windows(positions)[0], feed.windows(positions)[0])
    assert not other.at(positions[:8])["flipped"].any() and feed.at(positions)["flipped"].any()


def test_mistakes_are_reported(data_dir, run_config):
    with pytest.raises(UserError, match="does not split over 3 workers"):
        ClipFeed(data_dir, run_config, batch_size=4).batch(0, world=3)
    with pytest.raises(UserError, match="none of them with 12 frames or more in one piece"):
        ClipFeed(
            data_dir,
            tiny_config("clip.num_frames=12", "mdsa.plane_size=16", "data.segment_seconds=3", "mel.hop=200"),
            split="train",
        ).batch(0)
    with pytest.raises(UserError, match=r"was prepared with clip.height=32, the configuration says 64"):
        ClipFeed(data_dir, tiny_config("clip.height=64"))
    with pytest.raises(
        UserError, match=r"was prepared with mel.transform=whole, the configuration says segment"
    ):
        evaluation_windows(
            SegmentStore(data_dir), tiny_config("mel.transform=segment"), split="train", max_clips=4
        )
    with pytest.raises(
        UserError,
        match=r"filtered otherwise \(filters.min_rms_db=None there, -50.0 now\).*decodes nothing again",
    ):
        ClipFeed(data_dir, tiny_config("filters.min_rms_db=-50"))
    with pytest.raises(UserError, match="has no clips to use in the split test"):
        ClipFeed(data_dir, run_config, split="test")


@pytest.fixture(scope="module")
def cut_config(tmp_path_factory):
    """Six segments of 20 frames, cut before frames 3, 9 and 15.

    Each has a shot of 3 frames, which is too short for a window of 4, two shots of 6 and one of 5.
    """
    config = tiny_config(
        f"run_dir={tmp_path_factory.mktemp('cut')}", "filters.avoid_shot_cuts=true", "data.frame_codec=raw"
    )
    write_segments(config, frames=20, shots=(3, 9, 15), splits=("train", "validation"))
    return config


def test_no_window_crosses_a_shot_cut(cut_config):
    feed = ClipFeed(cut_config.data_folder, cut_config)
    assert feed.num_slots == 3 * 3
    indices, starts = feed.windows(np.arange(100 * feed.num_slots))
    assert set(starts.tolist()) == {3, 4, 5, 9, 10, 11, 15, 16} and set(indices.tolist()) == {0, 2, 4}
    picked = evaluation_windows(feed.store, cut_config, split="validation", max_clips=99)
    assert picked == [(index, start) for index in (1, 3, 5) for start in (3, 9, 15)]


def test_a_gain_moves_the_mel_and_the_sound_and_nothing_else(data_dir, run_config):
    make = partial(ClipFeed, data_dir, run_config, seed=3, batch_size=BATCH, with_audio=True)
    plain, louder = make().batch(2), make(gain_db=6).batch(2)
    gains = louder["gain_db"]
    assert plain["gain_db"].abs().max() == 0 and gains.abs().max() <= 6 and len(set(gains.tolist())) == BATCH
    scale = 10 ** (gains / 20)
    torch.testing.assert_close(louder["audio"], plain["audio"] * scale[:, None])
    span = run_config.mel.ceiling_log10 - run_config.mel.floor_log10
    shift = (louder["mel"] - plain["mel"]) * span / 2 * 20
    inside = (plain["mel"].abs() < 0.8) & (louder["mel"].abs() < 0.8)
    # float16 keeps 0.03 dB
    assert inside.any() and (shift - gains[:, None, None, None])[inside].abs().max() < 0.1
    assert_same(
        *(
            {name: batch[name] for name in batch if name not in ("mel", "audio", "gain_db")}
            for batch in (plain, louder)
        )
    )


def test_the_mel_of_an_unchanged_gain_is_the_stored_one_and_no_gain_clips(data_dir, run_config):
    feed = ClipFeed(data_dir, run_config, gain_db=40)
    stored, made = feed.store.window(0, 2, 4), feed.louder.sound(feed.store, 0, 2, 4, 0.0)
    assert np.array_equal(made["mel"], stored["mel"]) and np.array_equal(made["audio"], stored["audio"])
    gains = feed.louder.draw(0, np.arange(1000), np.full(1000, 0.5, np.float32))
    assert gains.min() < -30 and gains.max() == pytest.approx(6.0206, abs=1e-3)


@pytest.mark.parametrize(
    ("total", "most", "numbers"), [(10, 4, [0, 3, 6, 9]), (6, 3, [0, 2, 5]), (3, 8, [0, 1, 2]), (5, 1, [0])]
)
def test_numbers_are_spread_from_the_first_to_the_last(total, most, numbers):
    assert evenly_spread(total, most).tolist() == numbers


def test_evaluation_windows_are_spread_and_apart(data_dir, run_config):
    store = SegmentStore(data_dir)
    every = evaluation_windows(store, run_config, split="train", max_clips=1000)
    lengths = store.column("num_frames")
    assert every == [
        (int(index), start)
        for index in store.indices(split="train")
        for start in range(0, int(lengths[index]) - 3, 4)
    ]
    assert evaluation_windows(store, run_config, split="train", max_clips=3) == [
        every[number * len(every) // 3] for number in range(3)
    ]


@pytest.fixture(scope="module")
def latents_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    values = np.arange(2 * 7 * 4 * 6 * 2 * 2, dtype=np.float16).reshape(2, 7, 4, 6, 2, 2)
    for number, count in enumerate((4, 3)):
        rows = range(4 * number, 4 * number + count)
        table = pa.table(
            {
                "id": [f"segment {row // 2}" for row in rows],
                "source_id": ["s"] * count,
                "label": ["rain" if row % 2 else "" for row in rows],
                "split": ["validation" if row == 5 else "train" for row in rows],
                "start_frame": pa.array([row for row in rows], pa.int32()),
                "flipped": [row % 2 == 1 for row in rows],
                "joint": pa.array([values[0, row].tobytes() for row in rows], pa.large_binary()),
                "lone": pa.array([values[1, row].tobytes() for row in rows], pa.large_binary()),
                "shape": pa.array([[4, 6, 2, 2]] * count, pa.list_(pa.int32())),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=2)
        (folder / f"{number:06d}-000.parquet").write_bytes(buffer.getvalue())
    return str(folder), values


def test_latents_come_back_in_a_reproducible_order(latents_dir):
    folder, values = latents_dir
    feed = LatentFeed(folder, labels=("rain",), seed=1, batch_size=3)
    assert len(feed) == 6
    epoch = join([feed.batch(0), feed.batch(1)])
    assert sorted(epoch["start_frame"].tolist()) == [0, 1, 2, 3, 4, 6]
    for place, row in enumerate(epoch["start_frame"].tolist()):
        assert np.array_equal(epoch["joint"][place].numpy(), values[0, row].astype(np.float32))
        assert np.array_equal(epoch["lone"][place].numpy(), values[1, row].astype(np.float32))
        assert epoch["label"][place] == (0 if row % 2 else 1) and epoch["flipped"][place] == (row % 2 == 1)
    assert_same(
        join([feed.batch(4, rank=rank, world=3) for rank in range(3)]),
        LatentFeed(folder, labels=("rain",), seed=1, batch_size=3).batch(4),
    )
    (first,) = itertools.islice(feed.iterate(1), 1)
    assert_same(first, feed.batch(1))


def test_the_index_of_latents_is_in_one_piece_for_all_shards(latents_dir):
    index = LatentFeed(latents_dir[0], labels=("rain",)).index
    assert {column.num_chunks for column in index.columns} == {1}  # else every batch would join all shards


def test_a_mistake_in_a_loader_process_is_reported_in_one_line(latents_dir, tmp_path):
    folder = shutil.copytree(latents_dir[0], tmp_path / "latents")
    feed = LatentFeed(str(folder), labels=(), batch_size=6)
    (folder / "000000-000.parquet").unlink()
    with pytest.raises(UserError, match=r"000000-000.parquet is missing") as error:
        next(feed.iterate(loader_workers=1))
    assert "\n" not in str(error.value)


def test_latents_by_number_and_their_mistakes(latents_dir, tmp_path):
    folder, _ = latents_dir
    assert LatentFeed(folder, labels=("rain",), split="validation").rows([0])["start_frame"].tolist() == [5]
    with pytest.raises(UserError, match="ray_jobs/encode.py"):
        LatentFeed(str(tmp_path), labels=())
    with pytest.raises(UserError, match="no clips to use in the split test"):
        LatentFeed(folder, labels=(), split="test")
