"""Randomness as a function of (purpose, seed, index): equal on every device, in every batch, on every rank.

Not here: what the numbers are used for. In generation the index is a sample's number; in training it is a
clip's position in the training order. Draws of the same seed and index differ if their purposes differ. The
order of a batch and the clock never matter (our choice).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORD_BITS = 64
_MANTISSA_BITS = 53


def _digest(purpose: str, seed: int, index: int, num_bytes: int) -> bytes:
    """BLAKE2b of "purpose:seed:index". Different triples give different texts, since numbers hold no colon.

    purpose, seed, index: as in `noise_for`.
    num_bytes: length of the result.
    """
    return hashlib.blake2b(f"{purpose}:{int(seed)}:{int(index)}".encode(), digest_size=num_bytes).digest()


def noise_for(seed: int, index: int, shape: Sequence[int], *, purpose: str = "sample") -> Tensor:
    """e ~ N(0, 1) of this shape, float32 on the CPU: a function of (purpose, seed, index) and shape alone.

    The Philox generator is keyed with 128 bits of the hash. The probability that two of n draws are equal is
    n^2 / 2^129, practically zero. torch's CPU generator keeps only 32 bits of its seed: among 100,000 samples
    one pair would be expected to be equal.

    seed: of the run or the request.
    index: of the sample, or the clip's position in training.
    shape: of the result.
    purpose: what the noise is for; other purposes give other noise.
    """
    key = int.from_bytes(_digest(purpose, seed, index, 16), "little")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values)


def noise_batch(
    identities: Sequence[tuple[int, int]], shape: Sequence[int], *, purpose: str = "sample"
) -> Tensor:
    """[B, *shape]: the noise of each (seed, index) pair."""
    return torch.stack([noise_for(seed, index, shape, purpose=purpose) for seed, index in identities])


def uniforms_for(seed: int, index: int, count: int, *, purpose: str) -> Tensor:
    """u in (0, 1), [count] float64: the hash read as 53-bit fractions.

    seed, index, purpose: as in `noise_for`.
    count: how many numbers, at most 8.
    """
    assert count * _WORD_BITS <= 512, "BLAKE2b gives 512 bits"
    words = np.frombuffer(_digest(purpose, seed, index, 64), dtype="<u8")[:count] >> np.uint64(
        _WORD_BITS - _MANTISSA_BITS
    )
    # The half excludes 0. The largest fraction would round to 1; the minimum keeps it at 1 - 2^-53.
    return torch.from_numpy(np.minimum((words + 0.5) * 2.0**-_MANTISSA_BITS, 1 - 2.0**-_MANTISSA_BITS))
