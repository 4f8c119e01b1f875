"""Objects of the made world in the frames of a clip: where they are and how large, frame by frame.

Backgrounds are pale and objects colourful (`examples/world`), so an object is a patch of strong colour.
Letters: T frames, H and W rows and columns, N objects. Lengths are in picture heights. `trajectories.py`
finds the impacts of the objects.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from proav.metrics.world.laws import FLOOR, GRAVITY, MAX_RADIUS, MIN_RADIUS

MIN_COLOUR = 40
"""A pixel may belong to an object if its largest minus its smallest colour value exceeds this. Backgrounds
stay below 15.
"""
MAX_OBJECTS = 3
"""Most objects of a clip."""
MAX_PATCHES = 6
"""Most patches of a frame: objects, and specks beside them. A frame with more is not of this world."""
MIN_PATCH_RADIUS, MAX_PATCH_RADIUS = 0.6 * MIN_RADIUS, 2.2 * MAX_RADIUS
"""Radii of the patches that count. Smaller patches are specks. Larger ones are too large even for several
objects that touch.
"""
RADIUS_SCALE, STEP_SCALE = 0.12, 0.15
"""Scales of the assignment of patches to objects. Differences of log radii are divided by the first,
differences of places (in picture heights) by the second.
"""


@dataclass(frozen=True)
class Track:
    """One object: its radius, and its places."""

    radius: float
    places_T2: np.ndarray
    """x, y; NaN in frames where the object was not found."""


@dataclass(frozen=True)
class Patch:
    """A patch of strong colour in one frame: pixel coordinates in picture heights and their weights."""

    points_P2: np.ndarray
    weights_P: np.ndarray
    pixel: float

    @property
    def place(self) -> np.ndarray:
        """Its centre."""
        return self.weights_P @ self.points_P2 / self.weights_P.sum()

    @property
    def radius(self) -> float:
        """Radius of a disc of the same area."""
        return float(np.sqrt(self.weights_P.sum() / np.pi) * self.pixel)


def find_tracks(video_THWC: np.ndarray) -> list[Track]:
    """The objects of a clip, uint8 [T, H, W, 3]; [] if most frames are not of this world.

    The number of objects is the most frequent number of patches of a frame. If at least two frames
    have one more patch, and none has more than that, it is that larger number: objects that touch look like
    one patch for a while. It is at most MAX_OBJECTS: smaller patches beside that many objects are specks.
    """
    frames = find_patches(video_THWC)
    counts = [min(len(patches), MAX_OBJECTS) for patches in frames if 0 < len(patches) <= MAX_PATCHES]
    if 2 * len(counts) < len(frames):
        return []
    number = max(sorted(set(counts)), key=counts.count)
    if number < MAX_OBJECTS and counts.count(number + 1) >= 2 and max(counts) == number + 1:
        number += 1
    # if a speck lasts beside the most objects, no frame has exactly that number
    full = [patches for patches in frames if len(patches) == number] or [
        patches for patches in frames if number <= len(patches) <= MAX_PATCHES
    ]
    full = [sorted(patches, key=lambda patch: patch.radius)[-number:] for patches in full]
    radii = np.median([[patch.radius for patch in patches] for patches in full], axis=0)
    places_TN2 = np.full((len(frames), number, 2), np.nan)
    for frame, patches in enumerate(frames):
        if number <= len(patches) <= MAX_PATCHES:
            _give(places_TN2, frame, radii, patches)
        elif 0 < len(patches) < number:
            _share(places_TN2, frame, radii, patches)
    return [Track(float(radius), places_TN2[:, each]) for each, radius in enumerate(radii)]


def find_patches(video_THWC: np.ndarray) -> list[list[Patch]]:
    """For each frame, the patches of strong colour that may be objects."""
    video = video_THWC.astype(np.int16)
    colour_THW = (video.max(-1) - video.min(-1)).astype(np.float32)
    labels_THW = _labels(colour_THW > MIN_COLOUR)
    return [_patches(colour, labels) for colour, labels in zip(colour_THW, labels_THW, strict=True)]


def _labels(mask_THW: np.ndarray) -> np.ndarray:
    """Connected components: each pixel gets the largest pixel number of its component; 0 outside."""
    size = mask_THW[0].size
    labels = np.where(mask_THW, np.arange(1, size + 1).reshape(mask_THW.shape[1:]), 0)
    while True:
        before = labels
        for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
            moved = np.roll(labels, step, axis)
            edge = [slice(None)] * 3
            edge[axis] = 0 if step == 1 else -1
            moved[tuple(edge)] = 0
            labels = np.where(mask_THW, np.maximum(labels, moved), 0)
        if np.array_equal(labels, before):
            return labels


def _patches(colour_HW: np.ndarray, labels_HW: np.ndarray) -> list[Patch]:
    height = len(colour_HW)
    found = []
    numbers, sizes = np.unique(labels_HW, return_counts=True)
    least = np.pi * (MIN_PATCH_RADIUS * height) ** 2
    most = np.pi * (MAX_PATCH_RADIUS * height) ** 2
    for number, size in zip(numbers, sizes, strict=True):
        if number == 0 or not least <= size <= most:
            continue
        rows, columns = np.nonzero(labels_HW == number)
        colours = colour_HW[rows, columns]
        weights = np.clip(colours / (0.9 * np.quantile(colours, 0.8)), 0, 1)
        points = (np.stack([columns, rows], axis=-1) + 0.5) / height
        found.append(Patch(points, weights, 1 / height))
    return found


def _expected(places_TN2: np.ndarray, frame: int, radii: np.ndarray) -> np.ndarray:
    """Where objects are expected, NaN if unknown.

    An object that was found in both previous frames moves on with constant velocity. Otherwise it stays where
    it was last found. A place behind the floor or a wall is reflected.
    """
    expected = np.full((len(radii), 2), np.nan)
    for each, radius in enumerate(radii):
        known = np.flatnonzero(np.isfinite(places_TN2[:frame, each, 0]))
        if not len(known):
            continue
        last = places_TN2[known[-1], each]
        place = last.copy()
        if len(known) > 1 and known[-1] == frame - 1 and known[-2] == frame - 2:
            place = 2 * last - places_TN2[known[-2], each]
        place[0] = max(place[0], 2 * radius - place[0])
        place[0] = min(place[0], 2 * (1 - radius) - place[0])
        place[1] = min(place[1], 2 * (FLOOR - radius) - place[1])
        expected[each] = place
    return expected


def _distance(place: np.ndarray, expected: np.ndarray) -> float:
    """Squared distance in units of STEP_SCALE; 0 if nothing is expected."""
    return 0.0 if np.isnan(expected[0]) else float(np.sum(((place - expected) / STEP_SCALE) ** 2))


def _give(places_TN2: np.ndarray, frame: int, radii: np.ndarray, patches: list[Patch]) -> None:
    """Assigns to each object the patch that fits best in size and place. The other patches are specks."""
    expected = _expected(places_TN2, frame, radii)

    def cost(order: tuple[int, ...]) -> float:
        return sum(
            (np.log(patches[patch].radius / radii[each]) / RADIUS_SCALE) ** 2
            + _distance(patches[patch].place, expected[each])
            for each, patch in enumerate(order)
        )

    order = min(itertools.permutations(range(len(patches)), len(radii)), key=cost)
    for each, patch in enumerate(order):
        places_TN2[frame, each] = patches[patch].place


def _share(places_TN2: np.ndarray, frame: int, radii: np.ndarray, patches: list[Patch]) -> None:
    """Assigns fewer patches than objects, so that areas and places fit best.

    Some patches are then several objects that touch.
    """
    expected = _expected(places_TN2, frame, radii)
    best, found = np.inf, None
    for owners in itertools.product(range(len(patches)), repeat=len(radii)):
        if len(set(owners)) < len(patches):
            continue
        cost, places = 0.0, np.zeros((len(radii), 2))
        for number, patch in enumerate(patches):
            own = [each for each, owner in enumerate(owners) if owner == number]
            area = float(np.sqrt(np.sum(radii[own] ** 2)))
            cost += (np.log(patch.radius / area) / RADIUS_SCALE) ** 2
            places[own], misfit = _centres(patch, radii[own], expected[own])
            cost += misfit
        cost += sum(_distance(places[each], expected[each]) for each in range(len(radii)))
        if cost < best:
            best, found = cost, places
    if found is not None:
        places_TN2[frame] = found


def _centres(patch: Patch, radii: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, float]:
    """(places [N, 2], misfit) of objects of these radii within a patch, as in k-means.

    Two steps alternate: each pixel is assigned to the nearest disc, then each disc moves to the centre of its
    pixels.
    """
    if len(radii) == 1:
        return patch.place[None], 0.0
    away = patch.points_P2 - patch.place
    axis = np.linalg.svd(away * np.sqrt(patch.weights_P)[:, None], full_matrices=False)[2][0]
    reach = np.linspace(-1, 1, len(radii)) * patch.radius * 0.7
    best = np.inf, patch.place[None].repeat(len(radii), 0)
    for order in itertools.permutations(range(len(radii))):
        centres = patch.place + reach[list(order), None] * axis
        for _ in range(12):
            far = ((patch.points_P2[:, None] - centres) ** 2).sum(-1) - radii**2
            nearest = far.argmin(1)
            for each in range(len(radii)):
                weights = patch.weights_P * (nearest == each)
                if weights.sum() > 0:
                    centres[each] = weights @ patch.points_P2 / weights.sum()
        areas = np.array([(patch.weights_P * (nearest == each)).sum() for each in range(len(radii))])
        wanted = np.pi * (radii / patch.pixel) ** 2
        misfit = float(np.abs(areas / areas.sum() - wanted / wanted.sum()).sum()) / RADIUS_SCALE
        outside = patch.weights_P @ np.maximum(far.min(1), 0) / patch.weights_P.sum()
        misfit += float(outside) / patch.pixel**2
        if misfit < best[0]:
            best = misfit, centres
    return best[1], best[0]


def without_gravity(places_T2: np.ndarray, seconds_T: np.ndarray) -> np.ndarray:
    """Places minus the fall by gravity, x, y - g t^2 / 2: straight lines between impacts."""
    fall = GRAVITY * seconds_T**2 / 2
    return places_T2 - np.stack([np.zeros_like(fall), fall], axis=-1)
