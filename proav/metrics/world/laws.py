"""The laws of the made world: `examples/world` makes clips by them, and the world's metric measures by them.

Lengths are in picture heights, x to the right and y down, times in seconds. Clips are made in
`examples/world`. The other files of this folder find impacts in clips.
"""

from dataclasses import dataclass

import numpy as np

GRAVITY = 2.0
"""Picture heights per second squared, downwards: a fall over three quarters of the picture takes 0.87 s."""
FLOOR = 0.9
"""Row of the floor. The walls are the picture's left and right edge, 0 and 1: pictures are square."""
MIN_RADIUS, MAX_RADIUS = 0.06, 0.14
"""Smallest and largest radius of objects, which are discs."""
REFERENCE_RADIUS, REFERENCE_HZ = 0.1, 500.0
"""An object of this radius has this pitch."""
PITCH_EXPONENT = 1.5
"""Small objects sound higher: pitch ~ radius^-1.5, 1,076 Hz at the smallest and 302 Hz at the largest."""
MIN_SPEED = 0.35
"""Change of velocity below which an impact is too faint for the world, in heights per second."""
MIN_GAP_SECONDS = 0.08
"""Shortest time between any two sounds of a clip."""
MIN_OWN_GAP_SECONDS = 0.2
"""Shortest time between two impacts of one object: two frames at 10 frames a second."""
ATTACK_HZ = (2900.0, 4100.0, 5300.0, 6700.0)
"""Frequencies of the modes of the contact itself, the same for all objects."""
ATTACK_SECONDS = 0.006
"""Time in which the contact's modes fall to 1/e."""


@dataclass(frozen=True)
class Material:
    """A label of the world: how it looks, bounces and sounds."""

    name: str
    colour: tuple[int, int, int]
    """RGB at full light."""
    restitution: float
    """Speed after an impact with the floor or a wall, divided by the speed before it."""
    ratios: tuple[float, ...]
    """Frequencies of the modes, divided by the pitch."""
    levels: tuple[float, ...]
    """Amplitudes of the modes. The amplitudes of all modes, with the contact's, are scaled to a sum of 1."""
    decay_seconds: tuple[float, ...]
    """Time in which each mode falls to 1/e."""
    attack: float
    """Sum of the amplitudes of the contact's modes."""


MATERIALS = {
    material.name: material
    for material in (
        # Ideal circular membrane: zeros of the Bessel functions (Fletcher and Rossing, section 3.2).
        Material(
            "drum", (200, 60, 190), 0.76,
            (1.0, 1.594, 2.136, 2.296), (1.0, 0.8, 0.6, 0.5), (0.16, 0.12, 0.09, 0.08), 0.5,
        ),
        # Goblets: nearly 1, 4, 9 (section 18.8); few modes that ring long.
        Material(
            "glass", (40, 190, 170), 0.84,
            (1.0, 4.1), (0.5, 1.0), (0.24, 0.20), 0.9,
        ),
        # Ideal free bar (section 2.15).
        Material(
            "metal", (60, 110, 220), 0.8,
            (1.0, 2.756, 5.404), (0.8, 1.0, 0.7), (0.34, 0.30, 0.22), 0.9,
        ),
        # Little but the lowest mode.
        Material(
            "rubber", (220, 50, 50), 0.88,
            (1.0, 2.0), (1.0, 0.1), (0.09, 0.04), 0.2,
        ),
        # Marimba bars, tuned to 1, 3.9, 9.2 (section 19.4); damped strongly.
        Material(
            "wood", (205, 130, 40), 0.72,
            (1.0, 3.9), (1.0, 0.7), (0.055, 0.03), 0.7,
        ),
    )
}  # fmt: skip
"""The materials by name. Ratios are rounded from Fletcher and Rossing, The Physics of Musical Instruments
(2nd edition)."""


def pitch_hz(radius: float) -> float:
    """Lowest mode of an object: 500 Hz x (0.1 / radius)^1.5."""
    return REFERENCE_HZ * (REFERENCE_RADIUS / radius) ** PITCH_EXPONENT


def impact_sound(material: Material, pitch: float, seconds_N: np.ndarray) -> np.ndarray:
    """Sound of an impact of amplitude 1 at given times after the impact, float64 [N]; 0 before it.

    s(t) = sum_k a_k exp(-t / d_k) sin(2 pi f_k t), sum_k a_k = 1: it starts at 0, at the impact itself.

    pitch: the lowest mode, in Hz.
    """
    attack = material.attack / len(ATTACK_HZ)
    modes = [
        *((pitch * ratio, level, decay) for ratio, level, decay in zip(
            material.ratios, material.levels, material.decay_seconds, strict=True
        )),
        *((hz, attack, ATTACK_SECONDS) for hz in ATTACK_HZ),
    ]  # fmt: skip
    scale = sum(level for _, level, _ in modes)
    since = np.maximum(seconds_N, 0.0)  # sin(0) is 0: nothing sounds before
    parts = (level * np.exp(-since / decay) * np.sin(2 * np.pi * hz * since) for hz, level, decay in modes)
    return sum(parts) / scale
