"""Noise is a function of (purpose, seed, index) alone.

It is the same in any batch, order or process, and different for any two such triples.
"""

import subprocess
import sys

import pytest
import torch

from proav.diffusion.noise import noise_batch, noise_for, uniforms_for

SHAPE = (3, 6, 4, 4)


def test_noise_does_not_depend_on_batch_or_order():
    identities = [(0, 0), (5, 2), (5, 3), (0, 9)]
    together = noise_batch(identities, SHAPE)
    for row, (seed, index) in enumerate(identities):
        assert torch.equal(together[row], noise_for(seed, index, SHAPE))
    assert torch.equal(noise_batch(identities[::-1], SHAPE), together.flip(0))


def test_noise_does_not_touch_or_read_the_global_generators():
    torch.manual_seed(0)
    first, state = noise_for(1, 2, SHAPE), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(noise_for(1, 2, SHAPE), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_process_draws_the_same_noise():
    code = (
        "from proav.diffusion.noise import noise_for, uniforms_for; "
        "print(noise_for(3, 8, (2, 2)).flatten().tolist(), uniforms_for(3, 8, 2, purpose='task').tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (
        printed
        == f"{noise_for(3, 8, (2, 2)).flatten().tolist()} {uniforms_for(3, 8, 2, purpose='task').tolist()}"
    )


def test_seeds_indices_and_purposes_are_all_told_apart():
    """Among them: triples that a sum, a concatenation of digits or a cut to 32 bits would confuse."""
    pairs = [(0, 0), (1, 0), (0, 1), (1, 11), (11, 1), (2**32, 0), (0, 2**32)]
    draws = [noise_for(seed, index, (8,)) for seed, index in pairs] + [noise_for(0, 0, (8,), purpose="train")]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_noise_is_standard_normal_and_uncorrelated_between_indices():
    draws = torch.stack([noise_for(0, index, (4096,)) for index in range(32)])
    assert draws.dtype == torch.float32
    assert draws.mean().item() == pytest.approx(0, abs=0.01) and draws.std().item() == pytest.approx(
        1, abs=0.01
    )
    correlation = torch.corrcoef(draws) - torch.eye(32)
    assert correlation.abs().max() < 5 / 4096**0.5


def test_uniforms_fill_the_open_interval():
    uniforms = torch.stack([uniforms_for(0, index, 8, purpose="test") for index in range(5000)])
    assert uniforms.dtype == torch.float64 and uniforms.min() > 0 and uniforms.max() < 1
    torch.testing.assert_close(
        torch.histc(uniforms, 10, 0, 1) / uniforms.numel(),
        torch.full((10,), 0.1, dtype=torch.float64),
        atol=0.01,
        rtol=0,
    )
    assert (torch.corrcoef(uniforms.T) - torch.eye(8)).abs().max() < 0.06
