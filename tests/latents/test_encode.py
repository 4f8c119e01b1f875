"""Latents: exact statistics, windows within shots, interrupted and killed runs, and what is refused."""

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from proav import storage
from proav.config import Config
from proav.config.reading import config_to_yaml
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.parquet import ShardWriter, open_parquet
from proav.data.store.shards import SegmentStore
from proav.diffusion.tasks import draw_tasks, mask_of_window
from proav.errors import UserError, raise_from_text
from proav.generation.coder import load_coder
from proav.latents import encode
from proav.latents.encode import (
    LATENT_SCHEMA,
    ROW_OVERHEAD_BYTES,
    ShardEncoder,
    _check_room,
    differing_settings,
    encode_latents,
    masked_settings,
    size_text,
    windows_per_shard,
)
from proav.latents.statistics import merge_statistics, plane_sums, shard_sums
from proav.runs.checkpoint import load_checkpoint, save_checkpoint
from proav.storage.lease import LeaseHeld
from tests.tiny import LABELS, save_tiny_mdsa, save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_segments

ROOT = Path(__file__).parents[2]


def prepare(folder, *words: str, frames: int = 8, **segments) -> Config:
    """A run with random segments, three shards of two, and an untrained MDSA."""
    config = tiny_config(f"run_dir={folder}", "data.frame_codec=raw", *words)
    write_segments(config, frames=frames, **segments)
    save_tiny_mdsa(f"{folder}/mdsa/checkpoints", config)
    return config


def digests(config: Config) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(config.run_folder, "latents").iterdir()
    }


def encode_here(config: Config, monkeypatch, **options) -> dict:
    """`encode_latents` without Ray: all shards are encoded in this process."""

    def one_by_one(config, checkpoint, settings, windows, lease):
        encoder = ShardEncoder(config, checkpoint.path, settings)
        rows = [encoder({"shard": name}) for name in windows]
        for row in rows:
            if row["error"]:
                raise_from_text(row["error"])
        return {row["shard"]: row for row in rows}

    with monkeypatch.context() as changed:
        changed.setattr(encode, "_encode_shards", one_by_one)
        return encode_latents(config, **options)


def write_rows(path, stacks: np.ndarray, splits: list[str]) -> dict:
    with ShardWriter(str(path), LATENT_SCHEMA) as writer:
        for stack, split in zip(stacks, splits, strict=True):
            identity = {
                "id": "",
                "source_id": "",
                "label": "",
                "labels": [],
                "split": split,
                "start_frame": 0,
                "flipped": False,
            }
            writer.write({**identity, "joint": stack.tobytes(), "lone": b"", "shape": list(stack.shape)})
    return shard_sums(str(path))


def test_statistics_are_exact_and_the_same_bits_for_any_grouping_and_order(tmp_path):
    draw = np.random.default_rng(0)
    stacks = np.tanh(
        draw.normal(size=(12, 3, 6, 4, 4)) * 10.0 ** draw.integers(-7, 1, (12, 3, 6, 1, 1))
    ).astype(np.float16)
    splits = ["train"] * 10 + ["validation"] * 2
    whole = merge_statistics([write_rows(tmp_path / "whole.parquet", stacks, splits)])
    values = stacks[:10].astype(np.longdouble).transpose(2, 1, 0, 3, 4).reshape(6, 3, -1)
    assert whole["num_windows"] == 12
    np.testing.assert_array_equal(np.array(whole["mean"]), values.mean(-1).astype(np.float64))
    np.testing.assert_allclose(
        np.array(whole["std"]), np.maximum(values.std(-1), 1e-3).astype(np.float64), rtol=1e-15
    )
    for number, cuts in enumerate(([5], [1, 2, 11], [3, 4, 6, 10])):
        order = draw.permutation(12)
        groups = np.split(order, cuts)
        parts = [
            write_rows(tmp_path / f"{number}-{k}.parquet", stacks[group], [splits[i] for i in group])
            for k, group in enumerate(groups)
        ]
        assert merge_statistics(parts) == whole


def test_one_deviation_a_plane_is_the_root_of_its_channels_mean_variance(tmp_path):
    draw = np.random.default_rng(0)
    stacks = (
        draw.normal(size=(20, 4, 6, 4, 4)) * np.array([4.0, 2.0, 1.0, 0.0])[:, None, None, None]
    ).astype(np.float16)
    part = write_rows(tmp_path / "shard.parquet", stacks, ["train"] * 20)
    channel, plane = merge_statistics([part]), merge_statistics([part], scale="plane", channels=[3] * 6)
    assert channel["mean"] == plane["mean"]
    expected = np.sqrt(
        (np.array(channel["std"])[:, :3] ** 2).mean(1)
    )  # the fourth channel does not belong to the plane
    np.testing.assert_allclose(np.array(plane["std"]), np.repeat(expected[:, None], 4, 1), rtol=1e-12)


def test_statistics_of_a_constant_and_of_no_numbers():
    totals, squares = plane_sums(np.full((2, 6, 4, 4), -0.25, np.float16), "shard")
    assert (totals == -4 * 2**24).all() and (squares == 2**48).all()
    assert plane_sums(np.full((1, 6, 256, 256), 1, np.float16), "shard")[1][0][0] == 2**64
    assert (
        plane_sums(np.full((1, 6, 4, 4), -1000.5, np.float16), "shard")[1][0][0] == 16 * (2001 * 2**23) ** 2
    )
    for value in (np.nan, np.inf, 1025):
        with pytest.raises(UserError, match="shard holds latents that are no numbers within 1024"):
            plane_sums(np.full((2, 6, 4, 4), value, np.float16), "shard")
    with pytest.raises(UserError, match="no training windows"):
        merge_statistics([])


def test_stored_latents_are_those_of_the_windows_and_none_crosses_a_cut(tmp_path):
    words = ("filters.avoid_shot_cuts=true", "encode.batch_size=3")
    config = prepare(tmp_path, *words, frames=20, shots=(3, 9, 15), splits=("train", "validation"))
    checkpoint = load_checkpoint(f"{tmp_path}/mdsa/checkpoints", kind="mdsa")
    encoder, store = ShardEncoder(config, checkpoint.path, {}), SegmentStore(config.data_folder)
    expected = windows_per_shard(store, config)
    for name in expected:
        told = encoder({"shard": name})
        assert (
            not told["error"] and told["num_windows"] == expected[name] == 3 * 5
        )  # starts 3, 5, 9, 11 and 15; training windows are also mirrored
    feed = LatentFeed(f"{tmp_path}/latents", labels=LABELS)
    rows = feed.rows(range(len(feed)))
    assert (
        rows["start_frame"].tolist() == [3, 3, 5, 5, 9, 9, 11, 11, 15, 15] * 3
        and rows["flipped"].tolist() == [False, True] * 15
    )
    coder = load_coder(checkpoint)
    for index in (3, 14):
        segment, start = 2 * (index // 10), int(rows["start_frame"][index])
        window = store.window(segment, start, 4, want=("video", "mel"))
        video = np.ascontiguousarray(
            window["video"][:, :, ::-1] if rows["flipped"][index] else window["video"]
        )
        arguments = torch.from_numpy(video)[None], torch.from_numpy(window["mel"]).float()[None]
        for kind in ("joint", "lone"):
            with torch.inference_mode():
                alone = coder.encode(*arguments, lone=kind == "lone")[0]
            torch.testing.assert_close(rows[kind][index], alone.half().float(), rtol=0, atol=2e-3)


def test_a_damaged_shard_of_an_interrupted_run_is_named(tmp_path, monkeypatch):
    """Its footer can be read, but not the page of its planes."""
    config = prepare(tmp_path)
    encode_here(config, monkeypatch)
    (tmp_path / "latents" / "stats.json").unlink()
    path = tmp_path / "latents" / "000000-000.parquet"
    column = next(
        column
        for column in map(open_parquet(str(path)).metadata.row_group(0).column, range(len(LATENT_SCHEMA)))
        if column.path_in_schema == "joint"
    )
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 16] = b"\xff" * 16  # the page's header
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged: .*; delete that file and run the same job"):
        encode_here(config, monkeypatch)
    path.unlink()
    assert encode_here(config, monkeypatch)["num_windows"]


def test_bf16_changes_the_network_alone_and_only_a_little(tmp_path):
    """Shards of another precision are made anew, since each shard records the settings that made it."""
    config = prepare(tmp_path, "encode.flips=false")
    path, stacks = f"{tmp_path}/mdsa/checkpoints", {}
    for precision in ("fp32", "tf32", "bf16"):
        config = config.model_copy(
            update={"encode": config.encode.model_copy(update={"precision": precision})}
        )
        encoder = ShardEncoder(config, load_checkpoint(path, kind="mdsa").path, {"precision": precision})
        for name in windows_per_shard(SegmentStore(config.data_folder), config):
            assert not encoder({"shard": name})["error"]
        rows = LatentFeed(f"{tmp_path}/latents", labels=LABELS).rows(range(4))
        stacks[precision] = rows["joint"].double()
    error = (stacks["bf16"] - stacks["fp32"]).norm() / stacks["fp32"].norm()
    assert torch.equal(stacks["tf32"], stacks["fp32"]) and 1e-4 < error < 2e-2


def test_latents_of_earlier_versions_were_made_in_fp32():
    assert differing_settings({"flips": True}, {"flips": True, "precision": "fp32"}) == []
    assert differing_settings({"flips": True}, {"flips": True, "precision": "bf16"}) == ["precision"]


MASKED = "diffusion.task_weights={joint: 1, i2av: 1, continue: 1, inpaint: 2}"


def test_masked_clips_are_stored_with_their_masks_and_read_for_the_drawn_task(tmp_path):
    config = prepare(tmp_path, MASKED, frames=12)
    checkpoint = load_checkpoint(f"{tmp_path}/mdsa/checkpoints", kind="mdsa")
    encoder, store = ShardEncoder(config, checkpoint.path, {}), SegmentStore(config.data_folder)
    for name in windows_per_shard(store, config):
        assert not encoder({"shard": name})["error"]
    feed = LatentFeed(f"{tmp_path}/latents", labels=LABELS, batch_size=24, masked_for=config)
    batch, coder = feed.batch(0), load_coder(checkpoint)
    names = draw_tasks(config.seed, batch["position"], config).names
    assert set(names) == {"joint", "i2av", "continue", "inpaint"}
    for place, task in enumerate(names):
        if task == "joint":
            assert not batch["masked"][place].any() and not batch["known"][place].any()
            continue
        segment, start = batch["segment_id"][place], int(batch["start_frame"][place])
        flipped = bool(batch["flipped"][place])
        known = mask_of_window(task, config, segment, start, flipped)
        assert torch.equal(batch["known"][place], known)
        index = store.index.column("id").to_pylist().index(segment)
        window = store.window(index, start, 4, want=("video", "mel"))
        video = np.ascontiguousarray(window["video"][:, :, ::-1] if flipped else window["video"])
        with torch.inference_mode():
            alone = coder.encode_masked(
                torch.from_numpy(video)[None], torch.from_numpy(window["mel"]).float()[None], known[None]
            )[0]
        torch.testing.assert_close(batch["masked"][place], alone.half().float(), rtol=0, atol=2e-3)
    plain = LatentFeed(f"{tmp_path}/latents", labels=LABELS, batch_size=24).batch(0)
    assert "masked" not in plain and torch.equal(plain["joint"], batch["joint"])


def test_latents_with_more_masked_tasks_serve_a_run_with_fewer():
    some, more = (
        tiny_config(f"diffusion.task_weights={{joint: 1, {weights}}}")
        for weights in ("inpaint: 1", "inpaint: 1, continue: 1")
    )
    stored = masked_settings(more)
    assert stored == {"masked_tasks": ["continue", "inpaint"], "continue_frames": 2}
    assert differing_settings(stored, masked_settings(some)) == []
    assert differing_settings(masked_settings(some), stored) == ["masked_tasks", "continue_frames"]
    assert masked_settings(tiny_config()) == {} and differing_settings({}, {}) == []
    longer = tiny_config("diffusion.task_weights={continue: 1}", "diffusion.continue_frames=3")
    assert differing_settings(stored, masked_settings(longer)) == ["continue_frames"]


@pytest.mark.ray
def test_masked_clips_are_the_same_bytes_for_any_number_of_workers(tmp_path, ray_local, monkeypatch):
    one, two = (
        prepare(tmp_path / str(count), MASKED, f"encode.num_workers={count}", frames=12) for count in (1, 2)
    )
    encode_here(one, monkeypatch)
    encode_latents(two)
    assert without_paths(digests(one), one) == without_paths(digests(two), two)
    save_tiny_stdit(f"{two.run_folder}/stdit/checkpoints", two)
    words = (f"run_dir={two.run_folder}", MASKED, "diffusion.continue_frames=1")
    with pytest.raises(UserError) as error:
        encode_latents(tiny_config(*words))
    assert "continue_frames=1. Write encode.replace=true" in str(error.value)  # ST-DiT can go on with them
    encode_here(tiny_config(*words, "encode.replace=true"), monkeypatch)
    stats = [json.loads(Path(run.run_folder, "latents", "stats.json").read_text()) for run in (one, two)]
    assert stats[0]["mean"] == stats[1]["mean"] and stats[1]["continue_frames"] == 1


def test_the_size_is_reported_and_a_full_disk_refused(tmp_path):
    config = prepare(tmp_path, frames=16)
    assert "not prepared yet" in size_text(tiny_config(f"run_dir={tmp_path}/other"))
    store, name = SegmentStore(config.data_folder), "000000-000.parquet"
    assert windows_per_shard(store, config)[name] == 2 * 7 * 2 and size_text(config).startswith(
        "latents: 84 windows, joint and lone, 2.4 kB each"
    )
    ShardEncoder(config, load_checkpoint(f"{tmp_path}/mdsa/checkpoints", kind="mdsa").path, {})(
        {"shard": name}
    )
    path = Path(config.run_folder, "latents", name)
    planes = 2 * 2 * 4 * 6 * 4 * 4
    overhead = path.stat().st_size / open_parquet(str(path)).metadata.num_rows - planes
    assert overhead == pytest.approx(ROW_OVERHEAD_BYTES, rel=0.25)
    with pytest.raises(UserError, match=r"windows of latents need about .* GB .* are free; make room"):
        _check_room(config, 10**15)


def holding_encoder(go: Path) -> type[ShardEncoder]:
    """A ShardEncoder that makes the first shard, and the others only when the file `go` is there."""

    class HoldingEncoder(ShardEncoder):
        def __call__(self, row: dict) -> dict:
            end = time.monotonic() + 120
            while row["shard"] != "000000-000.parquet" and not go.exists() and time.monotonic() < end:
                time.sleep(0.01)
            return super().__call__(row)

    return HoldingEncoder


HOLDING_JOB = """
import runpy, sys
from pathlib import Path
from proav.latents import encode
from tests.latents.test_encode import holding_encoder
encode.ShardEncoder = holding_encoder(Path("/no/such/file"))
runpy.run_path("ray_jobs/encode.py", run_name="__main__")
"""


@pytest.mark.ray
def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path, on_ray_local, monkeypatch):
    calm = prepare(tmp_path / "calm", frames=16)
    encode_here(calm, monkeypatch)
    expected = digests(calm)

    actors = prepare(tmp_path / "actor", "encode.num_workers=2", frames=16)
    killed, go = [], tmp_path / "go"
    watcher = threading.Thread(target=kill_at_first_shard, args=(actors, "ray::MapWorker", killed, go))
    watcher.start()
    with monkeypatch.context() as changed:
        changed.setattr(encode, "ShardEncoder", holding_encoder(go))
        encode_latents(actors)
    watcher.join()
    assert killed and without_paths(digests(actors), actors) == without_paths(expected, calm)

    driver = prepare(tmp_path / "driver", frames=16)
    Path(tmp_path, "driver.yaml").write_text(config_to_yaml(driver))
    job = subprocess.Popen(
        [sys.executable, "-c", HOLDING_JOB, "--config", f"{tmp_path}/driver.yaml"],
        cwd=ROOT,
        env=on_ray_local,
        stdout=subprocess.DEVNULL,
    )
    wait_for_shard(driver)
    job.kill()
    job.wait()
    left = digests(driver)
    assert list(left) == ["000000-000.parquet"]
    encode_latents(driver)
    assert without_paths(digests(driver), driver) == without_paths(expected, calm)
    before = {path: path.stat().st_mtime_ns for path in Path(driver.run_folder, "latents").iterdir()}
    assert encode_latents(driver)["num_windows"] == 84
    assert before == {path: path.stat().st_mtime_ns for path in Path(driver.run_folder, "latents").iterdir()}


def without_paths(found: dict[str, str], config: Config) -> dict:
    """The digests of the shards, and the statistics without the checkpoint's path."""
    stats = json.loads(Path(config.run_folder, "latents", "stats.json").read_text())
    return {**found, "stats.json": {key: value for key, value in stats.items() if key != "mdsa_path"}}


def wait_for_shard(config: Config) -> None:
    deadline = time.monotonic() + 120
    while not list(Path(config.run_folder, "latents").glob("*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_at_first_shard(config: Config, name: str, killed: list, then: Path) -> None:
    """Kills this process's workers of that name; `then` is made when they are killed."""
    wait_for_shard(config)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process.name().startswith(name[:15]) and name in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
    then.touch()


def test_a_second_job_on_the_same_run_is_refused_and_touches_nothing(tmp_path, monkeypatch):
    config = prepare(tmp_path)
    replacing = tiny_config(f"run_dir={tmp_path}", "encode.stride_frames=4", "encode.replace=true")
    refused = []

    def second_job(encoder, row):  # begins when the first job has written its first shard
        made = of_first(encoder, row)
        if not refused:
            before = digests(config)
            with pytest.raises(
                LeaseHeld, match=r"in use by another encode job .*another run_dir=DIR"
            ) as error:
                encode_latents(replacing)
            assert before and digests(config) == before
            refused.append(error.value)
        return made

    of_first = ShardEncoder.__call__
    monkeypatch.setattr(ShardEncoder, "__call__", second_job)
    assert encode_here(config, monkeypatch)["stride_frames"] == 2 and refused
    assert encode_here(replacing, monkeypatch)["stride_frames"] == 4  # the first one has ended


def test_latents_of_another_autoencoder_are_refused_until_told_otherwise(tmp_path, capsys, monkeypatch):
    config = prepare(tmp_path)
    first = encode_here(config, monkeypatch)
    with pytest.raises(
        UserError,
        match=r"was made with stride_frames=2; this run has stride_frames=4\. Write encode.replace=true",
    ):
        encode_latents(tiny_config(f"run_dir={tmp_path}", "encode.stride_frames=4"))
    checkpoint = load_checkpoint(f"{tmp_path}/mdsa/checkpoints", kind="mdsa")
    weights = {name: value + 0.01 for name, value in checkpoint.weights("ema").items()}
    path = save_checkpoint(
        f"{tmp_path}/mdsa/checkpoints",
        kind="mdsa",
        clips=16,
        step=4,
        config=config,
        tensors={"model": weights, "ema": weights},
        labels=LABELS,
    )
    newer = load_checkpoint(path).hash
    said = f"was made with mdsa_checkpoint={checkpoint.hash[:16]}; this run has mdsa_checkpoint={newer[:16]}"
    Path(tmp_path, "latents", "stats.json").rename(tmp_path / "stats.json")
    with pytest.raises(UserError, match=said):  # of an interrupted run as well
        encode_latents(config)
    (tmp_path / "stats.json").rename(tmp_path / "latents" / "stats.json")
    save_tiny_stdit(f"{tmp_path}/stdit/checkpoints", config)
    with pytest.raises(UserError, match="ST-DiT was trained on it .*delete its checkpoints too"):
        encode_latents(config, replace_unused=True)
    storage.delete_folder(f"{tmp_path}/stdit")
    second = encode_here(config, monkeypatch, replace_unused=True)
    assert f"{said}: deleted" in capsys.readouterr().out
    assert second["mdsa_checkpoint"] == newer and second["mean"] != first["mean"]
    words = (f"run_dir={tmp_path}", "encode.stride_frames=4", "encode.replace=true")
    third = encode_here(tiny_config(*words), monkeypatch)
    assert third["num_windows"] == 24 and third["stride_frames"] == 4
