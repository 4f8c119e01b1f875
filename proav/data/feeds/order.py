"""The order in which training meets the windows: pure functions of (seed, epoch, position), the same on every machine and world size.

Positions count clips from the start of training; epoch = position // n, where n is the number of slots. Hashes are spelled out here
instead of taken from a random generator, whose stream may change between numpy releases: a resumed run must go on in the same order.
"""

import numpy as np

_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_uint64(seed: int, stream: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """uint64 [n]: SplitMix64's finalizer, chained over the four arguments; `stream` keeps uses apart."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # wraps around by design
        for value in (seed, stream, epoch):
            state = _mix(state + np.uint64(value % 2**64))
        return _mix(state + np.asarray(indices).astype(np.uint64))


def uniform(seed: int, stream: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1), 53 bits."""
    return (hash_uint64(seed, stream, epoch, indices) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """int64 [n]: a permutation of 0 .. n - 1, by sorting hashes (stable, so that equal hashes keep their order)."""
    return np.argsort(hash_uint64(seed, _ORDER, epoch, np.arange(n)), kind="stable")


class EpochOrder:
    """position -> (epoch, slot): each epoch visits each of n slots once. Keeps the last two permutations (8 bytes a slot)."""

    def __init__(self, seed: int, num_slots: int) -> None:
        assert num_slots >= 1
        self.seed, self.num_slots = seed, num_slots
        self._permutations: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return {"seed": self.seed, "num_slots": self.num_slots, "_permutations": {}}

    def slots(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] epochs and int64 [n] slots of the positions."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.num_slots)
        slots = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            slots[chosen] = self._permutation(epoch)[places[chosen]]
        return epochs, slots

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            if len(self._permutations) == 2:
                del self._permutations[min(self._permutations)]
            self._permutations[epoch] = permutation(self.seed, epoch, self.num_slots)
        return self._permutations[epoch]


def slot_starts(
    seed: int,
    epochs: np.ndarray,
    slots: np.ndarray,
    *,
    ordinals: np.ndarray,
    counts: np.ndarray,
    choices: np.ndarray,
) -> np.ndarray:
    """int64 [n]: the start drawn for each slot in its epoch.

    A segment with `choices` possible starts and `counts` slots is cut into that many equal strata; slot number k draws uniformly from the k-th:
    start = floor((k + u) / counts * choices), u from (seed, epoch, slot). So an epoch covers long segments evenly and every start is as likely.
    """
    draws = np.empty(len(slots))
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        draws[chosen] = uniform(seed, _START, epoch, slots[chosen])
    return np.minimum(((ordinals + draws) / counts * choices).astype(np.int64), choices - 1)


def flips(seed: int, positions: np.ndarray) -> np.ndarray:
    """bool [n]: whether the clip at a position is mirrored, with probability 1/2."""
    return hash_uint64(seed, _FLIP, 0, positions) >> np.uint64(63) == 1


def turns(seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mirrored top to bottom, transposed), bool [n]: the clip at a position, each with probability 1/2."""
    draws = hash_uint64(seed, _TURN, 0, positions)
    return draws >> np.uint64(63) == 1, (draws >> np.uint64(62)) & np.uint64(1) == 1


def colours(seed: int, positions: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Contrast, even in [1 - most, 1 + most), and brightness, even in [-most / 2, most / 2): float64 [n]."""
    contrast, brightness = (uniform(seed, stream, 0, positions) for stream in (_CONTRAST, _BRIGHTNESS))
    return 1 + most * (2 * contrast - 1), most * (brightness - 0.5)


def gains(seed: int, positions: np.ndarray, most_db: float) -> np.ndarray:
    """float64 [n]: the gain in dB of the clip at a position, uniform in [-most_db, most_db)."""
    return most_db * (2 * uniform(seed, _GAIN, 0, positions) - 1)


def pitches(seed: int, positions: np.ndarray, most: int) -> np.ndarray:
    """int64 [n]: by how many mel bins the clip at a position is raised, even over -most .. most."""
    return (uniform(seed, _PITCH, 0, positions) * (2 * most + 1)).astype(np.int64) - most


def _mix(value: np.ndarray) -> np.ndarray:
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIERS[0]
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIERS[1]
    return value ^ (value >> np.uint64(31))


_ORDER, _START, _FLIP, _GAIN, _TURN, _CONTRAST, _BRIGHTNESS, _PITCH = range(8)
