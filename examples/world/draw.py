"""Draws the frames of a scene: discs of strong colours before a pale background, antialiased, at exact
places.

Frame k shows the instant k / fps. Letters: T frames, H and W rows and columns.
"""

import numpy as np
from physics import SECONDS, Body, Scene, random_of

from proav.metrics.world.laws import FLOOR, Material

TINT = 7
"""Colours of a background differ from grey by at most this many steps; objects are more colourful."""


def draw_frames(scene: Scene, *, fps: int, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3], H = W = size."""
    ground = draw_ground(scene, size)
    frames = np.repeat(ground[None], round(SECONDS * fps), axis=0)
    for number, frame in enumerate(frames):
        for body in scene.bodies:
            _draw_body(frame, body, scene.material, number / fps)
    return np.round(frames).clip(0, 255).astype(np.uint8)


def draw_ground(scene: Scene, size: int) -> np.ndarray:
    """The background, float32 [H, W, 3]: soft clouds and stripes of low contrast, and the floor."""
    generator = random_of(scene.seed, scene.index, 1)
    rows, columns = _pixel_centres(size)
    level = generator.uniform(95, 175)
    clouds = np.zeros((size, size))
    for _ in range(5):
        waves = generator.uniform(-12, 12, 2)
        phase, height = generator.uniform(0, 2 * np.pi), generator.uniform(1, 4)
        clouds += height * np.cos(waves[0] * rows + waves[1] * columns + phase)
    turn, width = generator.uniform(0, np.pi), generator.uniform(20, 50)
    stripes = generator.uniform(0, 4) * np.sin(width * (np.cos(turn) * rows + np.sin(turn) * columns))
    grey = level + clouds + stripes
    below = rows > FLOOR
    planks = 4 * np.sin(generator.uniform(15, 40) * columns + 30 * rows)
    darker = generator.uniform(35, 55) * (1 if level > 120 else -1)
    grey = np.where(below, level - darker + planks, grey)
    tint = generator.uniform(-TINT / 2, TINT / 2, 3)
    return (grey[..., None] + tint).astype(np.float32)


def _draw_body(frame_HWC: np.ndarray, body: Body, material: Material, time: float) -> None:
    """Draws one object onto a frame, at its place at this time."""
    size = len(frame_HWC)
    x, y = body.at(time)
    (top, bottom), (left, right) = (_covered(middle, body.radius, size) for middle in (y, x))
    rows, columns = _pixel_centres(size)
    across, down = columns[:, left:right] - x, rows[top:bottom] - y
    distance = np.hypot(across, down)
    cover = np.clip((body.radius - distance) * size + 0.5, 0, 1)
    opacity, light = _shade(material.name, across / body.radius, down / body.radius)
    colour = np.array(material.colour, np.float32) * light[..., None]
    weight = (cover * opacity)[..., None]
    part = frame_HWC[top:bottom, left:right]
    part += weight * (colour - part)


def _covered(middle: float, radius: float, size: int) -> tuple[int, int]:
    """(first, end) of the rows or columns that an object covers, with a margin of one on each side."""
    first, last = np.floor((np.array([middle - radius, middle + radius])) * size)
    return max(0, int(first) - 1), min(size, int(last) + 2)


def _shade(name: str, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(opacity, light) [H, W] of a material over a disc of radius 1.

    Both are symmetric, except for a soft light from above.
    """
    from_centre = np.hypot(across, down)
    soft = 0.95 - 0.08 * down
    full = np.ones_like(soft)
    if name == "glass":  # the background shows through its centre
        return 0.75 + 0.25 * np.minimum(from_centre, 1) ** 2, soft + 0.1
    if name == "metal":
        return full, soft + 0.25 * np.exp(-8 * from_centre**2)
    if name == "wood":
        return full, soft + 0.08 * np.cos(9 * from_centre)
    if name == "drum":  # a dark rim
        return full, soft - 0.3 * np.clip(8 * (from_centre - 0.7), 0, 1)
    return full, soft


def _pixel_centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [H, 1], columns [1, W]) in picture heights."""
    centres = (np.arange(size) + 0.5) / size
    return centres[:, None], centres[None, :]
