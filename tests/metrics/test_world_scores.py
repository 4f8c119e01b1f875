"""The made world's metric: known times, sounds that are late, lost or foreign, and rubbish."""

import itertools

import numpy as np
import pytest

from proav.metrics.world.laws import FLOOR, GRAVITY, MATERIALS, impact_sound, pitch_hz
from proav.metrics.world.objects import Track, find_patches, find_tracks
from proav.metrics.world.onsets import find_sounds, fitting_material
from proav.metrics.world.trajectories import Line, Path, Turn, find_impacts, find_path
from proav.metrics.world.world_scores import (
    WORLD_SCORES,
    best_pairs,
    match_times,
    see,
    world_scale,
    world_scores,
)

FPS, RATE, SIZE, FRAMES = 10, 16_000, 64, 8
RADIUS, BOUNCE = 0.1, 0.3417
"""When the object meets the floor, once and at a time between frames."""


def place(time: float) -> tuple[float, float]:
    """The centre of an object that meets the floor at BOUNCE at 1.2 heights per second and leaves at 0.9."""
    since = time - BOUNCE
    speed = 1.2 if since < 0 else -0.9
    return 0.3 + 0.4 * time, FLOOR - RADIUS + speed * since + GRAVITY * since**2 / 2


def picture(centres, *, radius: float = RADIUS, colour=(220, 50, 50), frames: int = FRAMES) -> np.ndarray:
    """A clip of discs on grey, uint8 [T, H, W, 3].

    centres: from a time in seconds to the discs' centres (x, y).
    radius: of the discs; the picture's side is 1.
    colour: RGB, 0 to 255.
    frames: how many.
    """
    rows, columns = (np.indices((SIZE, SIZE)) + 0.5) / SIZE
    video = np.full((frames, SIZE, SIZE, 3), 130.0)
    for number in range(frames):
        for x, y in centres(number / FPS):
            cover = np.clip((radius - np.hypot(columns - x, rows - y)) * SIZE + 0.5, 0, 1)[..., None]
            video[number] += cover * (np.array(colour) - video[number])
    return video.round().astype(np.uint8)


def sound(
    *times: float, material: str = "rubber", radius: float = RADIUS, frames: int = FRAMES
) -> np.ndarray:
    seconds = np.arange(frames * RATE // FPS) / RATE
    parts = (0.3 * impact_sound(MATERIALS[material], pitch_hz(radius), seconds - time) for time in times)
    return sum(parts, np.zeros(len(seconds))).astype(np.float32)


def scores(video: np.ndarray, audio: np.ndarray, label: str = "rubber") -> dict[str, float]:
    found = world_scores(video, audio, fps=FPS, sample_rate=RATE, label=label)
    assert tuple(found) == WORLD_SCORES
    return found


BALL = picture(lambda time: [place(time)])


def test_an_impact_is_found_between_frames_with_its_size():
    (impact,), followed = see(BALL, fps=FPS)
    assert impact.time == pytest.approx(BOUNCE, abs=0.003) and impact.kind == "floor" and followed == 1
    assert impact.radii == pytest.approx((RADIUS,), rel=0.04)


@pytest.mark.parametrize("name", sorted(MATERIALS))
def test_a_sound_is_found_with_its_material_and_pitch(name):
    sounds = find_sounds(sound(0.1234, 0.5, material=name, radius=0.08), sample_rate=RATE)
    assert [one.time for one in sounds] == pytest.approx([0.1234, 0.5], abs=0.003)
    assert fitting_material(sounds) == name
    assert all(abs(np.log2(one.pitch / pitch_hz(0.08))) < 0.1 for one in sounds)


def test_what_belongs_together_fits_in_everything():
    found = scores(BALL, sound(BOUNCE))
    assert found["impacts_heard"] == found["sounds_seen"] == found["label_fits"] == found["pitch_fits"] == 1
    assert found["impacts"] == found["sounds"] == found["followed"] == 1 and found["median_offset_ms"] < 3
    assert found["impact_synchrony"] > 0.99


@pytest.mark.parametrize(("late", "heard"), [(0.09, 1), (0.11, 0), (0.2, 0), (-0.09, 1), (-0.2, 0)])
def test_offsets_are_measured_and_more_than_a_frame_is_not_heard(late, heard):
    found = scores(BALL, sound(BOUNCE + late))
    assert found["impacts_heard"] == found["sounds_seen"] == heard
    assert found["median_offset_ms"] == pytest.approx(1000 * abs(late), abs=4)
    assert found["impact_synchrony"] == pytest.approx(1 - abs(late) / 0.4, abs=0.01)


def test_silence_and_sounds_of_nothing_count_against_a_clip():
    silent = scores(BALL, np.zeros_like(sound()))
    assert silent["impacts_heard"] == silent["impact_synchrony"] == 0 and silent["sounds"] == 0
    lost = ("sounds_seen", "median_offset_ms", "label_fits", "pitch_fits")
    assert all(np.isnan(silent[name]) for name in lost)
    still = scores(picture(lambda time: []), sound(0.3))
    assert still["sounds_seen"] == 0 and still["label_fits"] == 1
    lost = ("impacts_heard", "median_offset_ms", "pitch_fits", "followed")
    assert all(np.isnan(still[name]) for name in lost)
    twice = scores(BALL, sound(BOUNCE, BOUNCE + 0.2))
    assert twice["impacts_heard"] == 1 and twice["sounds_seen"] == 0.5


def test_another_material_and_another_size_are_noticed():
    assert scores(BALL, sound(BOUNCE, material="metal"))["label_fits"] == 0
    assert np.isnan(scores(BALL, sound(BOUNCE), label="waterfall")["label_fits"])
    of_another = scores(BALL, sound(BOUNCE, radius=0.065))
    assert (
        of_another["pitch_fits"] == of_another["impact_synchrony"] == 0 and of_another["impacts_heard"] == 1
    )


def test_where_nothing_happens_nothing_counts():
    flying = picture(lambda time: [(0.5, 0.3 + 0.2 * time - 0.4 * time + GRAVITY * time**2 / 2)])
    found = scores(flying, np.zeros_like(sound()))
    assert found["impacts"] == found["sounds"] == 0 and found["followed"] == 1
    assert np.isnan(found["impacts_heard"]) and np.isnan(found["sounds_seen"])


def test_objects_that_meet_in_the_air_are_one_impact():
    def centres(time):
        turn, fall = 0.35, GRAVITY * time**2 / 2
        apart = 0.1 + abs(time - turn) * 0.5
        return [(0.5 - apart, 0.2 + fall), (0.5 + apart, 0.2 + fall)]

    impacts, followed = see(picture(centres), fps=FPS)
    assert [impact.kind for impact in impacts] == ["objects"] and followed == 1
    assert impacts[0].time == pytest.approx(0.35, abs=0.01)


def turned(x: float, y: float, change: tuple[float, float], time: float, radius: float = RADIUS) -> Path:
    """The path of an object that turns once, at (x, y)."""
    since, velocity = np.array([x, y - GRAVITY * time**2 / 2]), np.array(change) / 2
    lines = (
        Line(0.0, time, since + velocity * time, -velocity, 0.0),
        Line(time, 0.8, since - velocity * time, velocity, 0.0),
    )
    turn = Turn(time, np.array([x, y]), np.array(change))
    return Path(Track(radius, np.zeros((FRAMES, 2))), lines, (turn,), 0.0)


def test_two_objects_that_meet_are_one_impact_whatever_happens_between_their_turns():
    left, right = turned(0.4, 0.4, (-1, 0), 0.30), turned(0.6, 0.4, (1, 0), 0.34)
    falling = turned(0.85, FLOOR - RADIUS, (0, -1), 0.31)
    impacts = find_impacts([left, falling, right])
    assert [impact.kind for impact in impacts] == ["floor", "objects"]
    assert [impact.time for impact in impacts] == pytest.approx([0.31, 0.32])


def test_two_pairs_that_meet_at_once_are_two_impacts():
    heights = 0.25, 0.6
    pairs = [[turned(0.4, y, (-1, 0), 0.3), turned(0.6, y, (1, 0), 0.32)] for y in heights]
    impacts = find_impacts([*pairs[0], *pairs[1]])
    assert [impact.objects for impact in impacts] == [(0, 1), (2, 3)]


def test_specks_beside_an_object_do_not_hide_it():
    specked = BALL.copy()
    specked[2:5, 4:9, 4:9] = specked[4:6, 20:26, 40:46] = (30, 200, 60)
    (impact,), followed = see(specked, fps=FPS)
    assert impact.time == pytest.approx(BOUNCE, abs=0.003) and followed == 1


def test_a_speck_that_lasts_does_not_hide_the_most_objects():
    specked = picture(lambda time: [(0.2, 0.3), (0.5, 0.5), (0.8, 0.3 + time / 5)])
    specked[:, 4:9, 4:9] = (30, 200, 60)
    assert {len(patches) for patches in find_patches(specked)} == {4}
    tracks = find_tracks(specked)
    assert [track.radius for track in tracks] == pytest.approx([RADIUS] * 3, rel=0.1)
    places = {tuple(track.places_T2[0].round(1)) for track in tracks}
    assert places == {(0.2, 0.3), (0.5, 0.5), (0.8, 0.3)}


def test_a_turn_without_contact_is_no_impact():
    turn = picture(lambda time: [(0.5, 0.2 + 0.5 * abs(time - 0.35) + GRAVITY * time**2 / 2)])
    (track,) = find_tracks(turn)
    path = find_path(track, fps=FPS)
    assert len(path.turns) == 1 and not find_impacts([path])


def test_rubbish_gives_no_impacts_and_no_errors():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    hiss = generator.normal(0, 0.1, FRAMES * RATE // FPS).astype(np.float32)
    black, silence = np.zeros_like(noise), np.zeros_like(hiss)
    for video in (noise, black, noise[:2], noise[:, :1, :1], np.roll(BALL, 20, 0)[::-1]):
        for audio in (hiss, silence, np.ones_like(hiss), hiss[:100], hiss[:0]):
            scores(video, audio)
    assert scores(noise, hiss)["impacts"] == 0 and scores(noise, hiss)["followed"] == 0
    assert np.isnan(scores(black, silence)["followed"])
    jumping = picture(lambda time: [tuple(generator.uniform(0.2, 0.8, 2))])
    assert scores(jumping, silence)["followed"] == 0 or scores(jumping, silence)["impacts"] == 0
    assert find_path(Track(0.1, np.full((8, 2), np.nan)), fps=FPS) is None


def test_pairs_are_one_to_one_as_many_as_can_be_and_the_nearest():
    assert match_times([0.1, 0.2], [0.15], tolerance=0.1) in ([(0, 0)], [(1, 0)])
    assert match_times([0.0, 0.1], [0.05, 0.18], tolerance=0.1) == [(0, 0), (1, 1)]
    assert match_times([0.1, 0.5], [0.49, 0.52], tolerance=0.1) == [(1, 0)]
    assert match_times([0.1], [0.2], tolerance=0.1) == [(0, 0)]
    assert not match_times([0.1], [0.21], tolerance=0.1)
    assert match_times([], [0.1], tolerance=0.1) == []


def test_the_pairs_of_greatest_worth_beat_all_others():
    """The pairs are compared with every pairing that is one to one and in order."""
    generator = np.random.default_rng(0)
    for _ in range(40):
        rows, columns = generator.integers(0, 5, 2)
        worth = generator.uniform(0, 1, (rows, columns)) * (generator.random((rows, columns)) < 0.6)
        best = 0.0
        for count in range(min(rows, columns) + 1):
            for chosen in itertools.combinations(range(rows), count):
                for others in itertools.combinations(range(columns), count):
                    best = max(best, sum(worth[pair] for pair in zip(chosen, others, strict=True)))
        pairs = best_pairs(worth.tolist())
        assert sum(worth[pair] for pair in pairs) == pytest.approx(best)
        assert pairs == sorted(pairs) and all(worth[pair] > 0 for pair in pairs)


def test_the_scale_falls_as_sounds_get_late():
    rows = world_scale()["windows"]["scores"]
    kinds = ("true clips", "1 frame late", "2 frames late", "3 frames late", "4 frames late")
    falling = [rows[kind]["impact_synchrony"] for kind in (*kinds, "another clip's sound")]
    assert falling[0] > 0.95 and falling[-1] < 0.2
    assert all(one - other > 0.05 for one, other in itertools.pairwise(falling))
    true, one, *others = (rows[kind]["impacts_heard"] for kind in kinds)
    assert true > 0.95 and 0.9 > one > 0.5 and max(others) < 0.4  # the last are chance
    assert rows["another clip's sound"]["label_fits"] < 0.05 < rows["true clips"]["label_fits"]
