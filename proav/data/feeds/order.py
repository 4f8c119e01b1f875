"""The order of training and its random draws: pure functions of (seed, epoch, position).

They return the same numbers on every machine and for every world size. Positions count clips from the start
of training; epoch = position // n, with n the number of slots. `augment.py` applies the draws to clips.

The hashes are written out here, because a random generator's stream may change between NumPy releases, but a
resumed run must go on in the same order.
"""

import numpy as np

_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_uint64(seed: int, stream: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """uint64 [n]: SplitMix64's finalizer, chained over the four arguments.

    seed: of the run.
    stream: a number for each use, which keeps the uses apart.
    epoch: from 0.
    indices: [n], what is hashed.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # wraps around by design
        for value in (seed, stream, epoch):
            state = _mix(state + np.uint64(value % 2**64))
        return _mix(state + np.asarray(indices).astype(np.uint64))


def uniform(seed: int, stream: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """float64 [n]: uniform in [0, 1), 53 bits. The parameters are those of `hash_uint64`."""
    return (hash_uint64(seed, stream, epoch, indices) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """int64 [n]: a permutation of 0 .. n - 1, by a stable sort of hashes: equal hashes keep their order."""
    return np.argsort(hash_uint64(seed, _ORDER, epoch, np.arange(n)), kind="stable")


class EpochOrder:
    """position -> (epoch, slot): each epoch visits each of n slots once.

    Keeps the last two permutations in memory (8 bytes a slot).
    """

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

    The possible starts of a stretch are cut into equal strata, one for each of its slots. Slot number k of a
    stretch draws uniformly from stratum k: start = floor((k + u) / counts * choices), u from (seed, epoch,
    slot). So an epoch covers long stretches evenly, and every start is equally likely.

    seed: of the run.
    epochs: int64 [n], the epoch of each slot.
    slots: int64 [n], the slot's number in the data set.
    ordinals: int64 [n], k, the slot's number in its stretch, from 0.
    counts: int64 [n], number of slots in the stretch.
    choices: int64 [n], number of possible starts in the stretch, in frames.
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
    """bool [n] each: whether a clip is mirrored top to bottom, and transposed; with probability 1/2 each."""
    draws = hash_uint64(seed, _TURN, 0, positions)
    return draws >> np.uint64(63) == 1, (draws >> np.uint64(62)) & np.uint64(1) == 1


def colours(seed: int, positions: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n] each: contrast, uniform in [1 - most, 1 + most); brightness in [-most / 2, most / 2)."""
    contrast, brightness = (uniform(seed, stream, 0, positions) for stream in (_CONTRAST, _BRIGHTNESS))
    return 1 + most * (2 * contrast - 1), most * (brightness - 0.5)


def gains(seed: int, positions: np.ndarray, most_db: float) -> np.ndarray:
    """float64 [n]: the gain in dB of the clip at a position, uniform in [-most_db, most_db)."""
    return most_db * (2 * uniform(seed, _GAIN, 0, positions) - 1)


def pitches(seed: int, positions: np.ndarray, most: int) -> np.ndarray:
    """int64 [n]: by how many mel bins the clip at a position is raised, uniform over -most .. most."""
    return (uniform(seed, _PITCH, 0, positions) * (2 * most + 1)).astype(np.int64) - most


def _mix(value: np.ndarray) -> np.ndarray:
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIERS[0]
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIERS[1]
    return value ^ (value >> np.uint64(31))


_ORDER, _START, _FLIP, _GAIN, _TURN, _CONTRAST, _BRIGHTNESS, _PITCH = range(8)
