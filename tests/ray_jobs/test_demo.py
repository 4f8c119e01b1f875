"""The demo's script on the shipped clips, from start to end, and the files that it leaves.

The numbers are even smaller than the demo's.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from proav import SoundingVideoPipeline
from proav.config.reading import load_config
from proav.evaluate.yardsticks import YARDSTICK_SCORES
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
CLIPS = ("bee_on_a_flower.mp4", "toy_pig.mp4", "man_moving_his_head_a.mp4", "city_skyline.mp4")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(script: str, *words: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, str(ROOT / "ray_jobs" / script), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    listing = folder / "clips.csv"
    splits = ["train", "train", "train", "validation"]
    listing.write_text(
        "path,labels,split\n"
        + "".join(
            f"{ROOT}/examples/clips/{name},{'ab'[i % 2]},{split}\n"
            for i, (name, split) in enumerate(zip(CLIPS, splits, strict=True))
        )
    )
    words = [word for word in TINY if not word.startswith("name=")] + [
        f"data.listing={listing}",
        "distill.train.num_clips=16",
        f"run_dir={folder}/run",
    ]
    return folder / "run", words, run("demo.py", *words, environment=dict(os.environ))


def test_every_file_of_the_contract_is_there(finished):
    folder, _, done = finished
    assert "report.html" in done.stdout
    for name in (
        "config.yaml",
        "data/manifest.json",
        "data/report.html",
        "latents/stats.json",
        "samples/manifest.jsonl",
        "eval/metrics.json",
        "report.html",
    ):
        assert (folder / name).is_file(), name
    for stage in ("mdsa", "stdit", "distill"):
        latest = (
            folder / stage / "checkpoints" / (folder / stage / "checkpoints" / "latest").read_text().strip()
        )
        assert (latest / "checkpoint.json").is_file() and (latest / "ema.safetensors").is_file()
        lines = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["clips"] for line in lines] == [4, 8, 12, 16]
        assert all({"clips", "step", "loss", "clips_per_second", "seconds"} <= set(line) for line in lines)
    assert list((folder / "data" / "segments").glob("*.parquet")) and list(
        (folder / "latents").glob("*.parquet")
    )


def test_samples_play_with_picture_and_sound(finished):
    folder, _, _ = finished
    rows = [json.loads(line) for line in (folder / "samples" / "manifest.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["path"] == f"000000/{row['index']:09d}.mp4" and len(row["checkpoint"]) >= 16
        with av.open(str(folder / "samples" / row["path"])) as container:
            pictures = sum(1 for _ in container.decode(video=0))
        with av.open(str(folder / "samples" / row["path"])) as container:
            assert pictures == 4 and sum(frame.samples for frame in container.decode(audio=0)) >= 12_800


def test_numbers_carry_their_protocol(finished):
    metrics = json.loads((finished[0] / "eval" / "metrics.json").read_text())
    for part, names in (
        (
            "reconstruction",
            (
                "psnr_db",
                "psnr_mean_colour_db",
                "psnr_temporal_mean_db",
                "mel_error_db",
                "mel_error_mean_mel_db",
            ),
        ),
        ("reconstruction", YARDSTICK_SCORES),
        ("stdit", ("loss", "loss_at_initialization")),
    ):
        assert all(metrics[part][name] > 0 for name in names) and "validation" in metrics[part]["protocol"]
    # the demo's channels, 4 x 4 cells
    assert metrics["yardsticks"]["values_per_stream"] == {"video": 768, "audio": 768}
    assert "train split" in metrics["yardsticks"]["protocol"]
    for table in metrics["tables"]:
        (row,) = [row for row in table["rows"] if row["metric"] == "blockiness"]
        assert row["value"] > 0.5 and row["floor"] > 0.5


def test_the_checkpoint_alone_makes_the_same_clips(finished, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder / "distill" / "checkpoints", tmp_path / "elsewhere")
    pipeline = SoundingVideoPipeline.from_checkpoint(str(tmp_path / "elsewhere" / "latest"))
    row = json.loads((folder / "samples" / "manifest.jsonl").read_text().splitlines()[0])
    (clip,) = pipeline(
        1, label=row["label"], seed=row["seed"], steps=row["steps"], guidance_scale=row["guidance_scale"]
    )
    with av.open(str(folder / "samples" / row["path"])) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert abs(stored.astype(float) - clip.video[0]).mean() < 12  # the file went through H.264


def test_a_second_run_changes_nothing_and_says_so(finished, on_ray_local):
    folder, words, _ = finished
    kept = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".parquet", ".mp4", ".safetensors")
    }
    began = time.monotonic()
    again = run("demo.py", *words, environment=on_ray_local)
    assert time.monotonic() - began < 60
    assert all(
        f"{stage}: done already" in again.stdout
        for stage in ("preprocess", "mdsa", "encode", "stdit", "distill", "generate", "evaluate")
    ), again.stdout
    assert kept == {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".parquet", ".mp4", ".safetensors")
    }


def test_more_samples_are_added_to_those_there(finished, on_ray_local):
    folder, words, _ = finished
    before = (folder / "samples" / "000000" / "000000000.mp4").stat().st_mtime_ns
    run("generate.py", *words, "generate.num_samples=4", environment=on_ray_local)
    assert (folder / "samples" / "000000" / "000000003.mp4").is_file()
    assert (folder / "samples" / "000000" / "000000000.mp4").stat().st_mtime_ns == before


def test_the_stored_configuration_is_the_run(finished):
    folder, _, _ = finished
    config = load_config(str(folder / "config.yaml"))
    assert config.run_folder == str(folder) and config.mdsa.width == 16
