"""The made world: its stated truth is found in its pixels and samples, it keeps its laws, and seed and index
decide a clip. The world's metric finds that truth, and its score falls with every frame of delay.
"""

import csv
import dataclasses
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.metrics.world_metric import FRAMES, measure, read_world
from proav.config.reading import load_config
from proav.data.sources.finding import find_sources
from proav.metrics.world.laws import FLOOR, GRAVITY, MATERIALS, MIN_GAP_SECONDS, MIN_OWN_GAP_SECONDS, pitch_hz

ROOT = Path(__file__).parents[2]
RATE = 16_000


@pytest.fixture(scope="module")
def world():
    """The modules of examples/world; they import each other as scripts do, from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "world")
        yield importlib.import_module("make")


@pytest.fixture(scope="module")
def physics(world):
    return sys.modules["physics"]


@pytest.fixture(scope="module")
def scenes(physics):
    return [physics.make_scene(3, index) for index in range(100)]


def make(*words: str, check: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples/world/make.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=None)
    assert done.returncode == check, done.stderr
    return done


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_fall_meets_the_floor_when_the_formula_says(physics):
    radius, height, restitution = 0.1, 0.5, 0.8
    start = physics.Flight(0.0, 0.5, FLOOR - radius - height, 0.0, 0.0)
    (body,), events = physics.run([(radius, start)], restitution, 2.0)
    first = math.sqrt(2 * height / GRAVITY)
    assert events[0].time == pytest.approx(first, abs=1e-12) and events[0].kind == "floor"
    assert events[1].time == pytest.approx(first + 2 * restitution * first, abs=1e-12)
    assert events[0].speed == pytest.approx(GRAVITY * first) and (events[0].x, events[0].y) == (0.5, FLOOR)
    top = first + restitution * first
    assert FLOOR - radius - body.at(top)[1] == pytest.approx(restitution**2 * height)


def test_objects_that_meet_keep_momentum_and_lose_what_restitution_says(physics):
    flights = physics.Flight(0.0, 0.3, 0.3, 0.5, 0.0), physics.Flight(0.0, 0.6, 0.33, -0.3, 0.0)
    (first, second), events = physics.run([(0.12, flights[0]), (0.07, flights[1])], 0.8, 0.4)
    (event,) = [event for event in events if event.kind == "objects"]
    (x1, y1), (x2, y2) = first.at(event.time - 1e-12), second.at(event.time - 1e-12)
    assert math.hypot(x1 - x2, y1 - y2) == pytest.approx(0.12 + 0.07, abs=1e-9)
    normal = np.array([x1 - x2, y1 - y2]) / (0.12 + 0.07)

    def velocities(body):
        before, after = body.flights[:2]
        return np.array([before.vx, before.vy + GRAVITY * event.time]), np.array([after.vx, after.vy])

    (before1, after1), (before2, after2) = velocities(first), velocities(second)
    np.testing.assert_allclose(0.12**2 * before1 + 0.07**2 * before2, 0.12**2 * after1 + 0.07**2 * after2)
    assert (after1 - after2) @ normal == pytest.approx(-0.8 * (before1 - before2) @ normal)
    along = np.array([-normal[1], normal[0]])
    assert after1 @ along == pytest.approx(before1 @ along)


def test_walls_return_what_flies_against_them(physics):
    (body,), events = physics.run([(0.1, physics.Flight(0.0, 0.5, 0.2, -1.0, 0.0))], 0.8, 0.6)
    assert [event.kind for event in events] == ["left_wall"] and events[0].time == pytest.approx(0.4)
    assert body.flights[1].vx == pytest.approx(0.8) and body.flights[1].vy == pytest.approx(GRAVITY * 0.4)


def test_scenes_keep_the_worlds_rules(physics, scenes):
    kinds = {event.kind for scene in scenes for event in scene.events}
    assert kinds == {"floor", "left_wall", "right_wall", "objects", "outside"}
    assert any(not scene.bodies for scene in scenes)
    assert any(scene.bodies and not scene.events for scene in scenes)
    for scene in scenes:
        times = [event.time for event in scene.events]
        assert all(after - before >= MIN_GAP_SECONDS for before, after in zip(times, times[1:]))
        for number, body in enumerate(scene.bodies):
            own = [event.time for event in scene.events if number in event.bodies]
            assert all(after - before >= MIN_OWN_GAP_SECONDS for before, after in zip(own, own[1:]))
            places = np.array([body.at(time) for time in np.linspace(0, physics.SECONDS, 200)])
            low, high = body.radius - 1e-9, 1 - body.radius + 1e-9
            assert (places[:, 0] >= low).all() and (places[:, 0] <= high).all()
            assert (places[:, 1] >= low).all() and (places[:, 1] <= FLOOR - body.radius + 1e-9).all()
    labels = [scene.material.name for scene in scenes]
    assert labels[:5] == sorted(MATERIALS) and labels[:5] == labels[5:10]


def test_a_frame_shows_each_object_where_the_formula_has_it(world, scenes):
    scene = next(scene for scene in scenes if len(scene.bodies) == 1 and scene.material.name == "rubber")
    clip = world.make_clip(scene, fps=10, size=64)
    for number, frame in enumerate(clip.video.astype(int)):
        colour = np.maximum(frame.max(-1) - frame.min(-1) - 15, 0)
        rows, columns = np.indices(colour.shape) + 0.5
        seen = np.array([(columns * colour).sum(), (rows * colour).sum()]) / colour.sum() / 64
        away = np.abs(seen - scene.bodies[0].at(number / 10)).max()
        assert away < 0.25 / 64  # a quarter of a pixel: light from above moves the centroid
    larger = world.make_clip(scene, fps=20, size=128)
    assert larger.video.shape == (32, 128, 128, 3) and larger.audio.tobytes() == clip.audio.tobytes()


def test_every_sound_begins_at_the_first_sample_from_its_impact_on(world, scenes):
    """Each event is made alone, so that no other covers its start. A clip is the sum of these sounds."""
    make_sound = sys.modules["sound"].make_sound
    kinds = set()
    for scene in scenes:
        whole = world.make_clip(scene, fps=10, size=32).audio
        parts = np.zeros(whole.shape)
        for event in scene.events:
            alone = make_sound(dataclasses.replace(scene, events=(event,)), sample_rate=RATE)
            first = math.ceil(event.time * RATE)
            assert np.flatnonzero(alone)[0] == first < len(alone)
            parts += alone
            kinds.add(event.kind)
        peak = np.abs(parts).max()
        np.testing.assert_allclose(whole, parts * min(1, 0.95 / max(peak, 1e-9)), atol=1e-6)
        assert np.abs(whole).max() <= 0.95 + 1e-6
    assert kinds == {"floor", "left_wall", "right_wall", "objects", "outside"}


def test_the_phase_is_that_of_the_time_between_samples(world, physics):
    time, radius = 0.12345678, 0.1
    event = physics.Event(time, "floor", (0,), 0.5, FLOOR, (radius,), 1.0, 0.01)
    scene = physics.Scene(0, 0, MATERIALS["rubber"], (), (event,))
    made = sys.modules["sound"].make_sound(scene, sample_rate=RATE)
    since = np.arange(len(made)) / RATE - time
    tail = since > 0.06  # the contact's modes are gone: the two of rubber are left
    material, hertz = MATERIALS["rubber"], pitch_hz(radius)
    whole = sum(material.levels) + material.attack
    expected = sum(
        level / whole * np.exp(-since / decay) * np.sin(2 * np.pi * hertz * ratio * since)
        for ratio, level, decay in zip(material.ratios, material.levels, material.decay_seconds, strict=True)
    )
    loud = sys.modules["sound"].amplitude(0.01)
    np.testing.assert_allclose(made[tail], loud * expected[tail], atol=1e-5)
    quiet = sys.modules["sound"].amplitude(0.0025)
    assert loud == pytest.approx(2 * quiet)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world of ten clips, made by one process."""
    folder = tmp_path_factory.mktemp("world")
    make(folder, "--clips", 10, "--seed", 5, "--processes", 1)
    return folder


def test_a_clip_does_not_follow_from_processes_or_from_the_others(made, tmp_path):
    make(tmp_path, "--clips", 6, "--seed", 5, "--processes", 2)
    (tmp_path / "clips/000003.mp4").unlink()
    make(tmp_path, "--clips", 10, "--seed", 5, "--processes", 2)  # a longer world holds the shorter one
    one = files(made)
    assert files(tmp_path) == one and len(one) == 10 + 4 and json.loads(one["world.json"])["clips"] == 10
    assert "done already" in make(tmp_path, "--clips", 10, "--seed", 5).stdout and files(tmp_path) == one


def test_a_world_of_an_older_version_is_refused(world, tmp_path, monkeypatch, capsys):
    """Resumed, it would have clips of two codings."""
    record = {"format": world.FORMAT - 1, "seed": 5, "fps": 10, "size": 64, "sample_rate": RATE, "clips": 10}
    for done in (False, True):
        (tmp_path / "world.json").write_text(json.dumps(record | {"done": done}))
        monkeypatch.setattr(sys, "argv", ["make.py", str(tmp_path), "--clips", "10", "--seed", "5"])
        with pytest.raises(SystemExit, match="2"):
            world.main()
        said = capsys.readouterr().err
        assert f"a world of format {world.FORMAT - 1}, not {world.FORMAT}; choose another folder" in said
        assert [path.name for path in tmp_path.iterdir()] == ["world.json"]


def test_other_worlds_and_wrong_words_are_refused(world, made, tmp_path, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["make.py", *map(str, words)])
        with pytest.raises(SystemExit, match="2"):
            world.main()
        return capsys.readouterr().err

    before = files(made)
    assert "seed 5, not 1" in said(made, "--clips", 10, "--seed", 1)
    assert "10 clips, more than --clips 1" in said(made, "--clips", 1, "--seed", 5)
    (tmp_path / "letter.txt").write_text("mine")
    assert "holds other files" in said(tmp_path) and "is a file" in said(tmp_path / "letter.txt")
    for words, named in (("--fps 7", "--fps 7"), ("--size 63", "--size 63"), ("--clips 0", "--clips")):
        assert named in said(tmp_path / "new", *words.split())
    assert files(made) == before and not (tmp_path / "new").exists()


def test_the_table_of_truth_and_the_listing_agree_with_the_scenes(world, made, physics):
    truth = list(csv.DictReader((made / "truth.csv").open()))
    events = [(index, event) for index in range(10) for event in physics.make_scene(5, index).events]
    assert [row["path"] for row in truth] == [world.clip_path(index) for index, _ in events]
    for row, (_, event) in zip(truth, events, strict=True):
        assert float(row["time_seconds"]) == pytest.approx(event.time, abs=1e-9) and row["kind"] == event.kind
        pitches = map(float, row["pitches_hz"].split())
        assert list(pitches) == pytest.approx([pitch_hz(radius) for radius in event.radii], rel=1e-6)
        assert (row["in_picture"] == "0") == (row["x"] == "") == (event.kind == "outside")
    config = load_config(str(ROOT / "configs/world.yaml"), [f"data.listing={made}/clips.csv"])
    assert find_sources(config).num_rows == 10


def test_every_split_has_every_label(world):
    found = {(world.split_of(index), world.label_of(index)) for index in range(100)}
    assert found == {(split, label) for split in ("train", "validation", "test") for label in MATERIALS}
    assert [world.split_of(index) for index in range(100)].count("train") == 80


def test_the_metric_finds_the_truth_and_falls_with_every_frame_of_delay(tmp_path):
    make(tmp_path, "--clips", 20, "--seed", 23, "--processes", 1)
    found = measure(*read_world(tmp_path), frames=FRAMES)
    assert found["num_clips"] == 40 and found["impacts"]["in_table"] >= 20
    for what in ("impacts", "sounds"):
        assert found[what]["recall"] >= 0.95 and found[what]["precision"] >= 0.95
        assert found[what]["median_offset_ms"] <= 10
    kinds = ("true clips", "1 frame late", "2 frames late", "4 frames late")
    scores = [found["scores"][kind]["impact_synchrony"] for kind in kinds]
    assert all(before > after + 0.1 for before, after in zip(scores, scores[1:])), scores
