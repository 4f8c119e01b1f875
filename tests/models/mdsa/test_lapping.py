"""The lapped transform against its known properties: published gains, orthogonality, mirrors."""

import math

import numpy as np
import pytest
import torch

from proav.models.mdsa import lapping
from proav.models.mdsa.lapping import Lapping, border_filter, mirrored


def cosines(side):
    """The orthonormal cosine transform of type II, [side, side]."""
    k, n = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    rows = math.sqrt(2 / side) * torch.cos(math.pi / side * k * (n + 0.5))
    rows[0] /= math.sqrt(2)
    return rows


@pytest.mark.parametrize(
    ("overlap", "angles", "known_db"),
    [(False, "ours", 8.83), (True, "published", 9.22), (True, "ours", 9.16)],
)
def test_coding_gain_of_a_smooth_signal_is_the_known_one(monkeypatch, overlap, angles, known_db):
    """Blocks of eight, a first-order process of correlation 0.95, published and own rotation angles."""
    if angles == "published":
        monkeypatch.setattr(lapping, "rotation", lambda start, end: np.eye(len(start)))
    blocks, side = 9, 8
    places = torch.arange(blocks * side).double()
    covariance = 0.95 ** (places[:, None] - places).abs()
    code = torch.block_diag(*[cosines(side)] * blocks)
    if overlap:
        units = torch.eye(len(places), dtype=torch.float64)[:, None]
        code = code @ Lapping((1, side))(units)[:, 0].T
    variances = (code @ covariance @ code.T).diagonal().view(blocks, side)[blocks // 2]
    assert -10 * variances.log10().mean() == pytest.approx(known_db, abs=0.005)


@pytest.mark.parametrize("side", [4, 6, 8, 16, 32])
def test_filters_are_orthogonal_and_keep_what_is_even_about_the_border(side):
    kernel = border_filter(side)
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(side), atol=1e-6, rtol=0)
    half = torch.randn(side // 2)
    even = torch.cat([half, half.flip(0)])
    torch.testing.assert_close(kernel @ even, even)


def test_lapped_images_go_back_and_keep_their_length_and_their_edges():
    images, lapping = torch.randn(2, 3, 24, 32), Lapping((8, 16))
    there = lapping(images)
    torch.testing.assert_close(lapping(there, back=True), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.norm(), images.norm())
    torch.testing.assert_close(there[..., :4, :8], images[..., :4, :8])
    assert not torch.allclose(there[..., 8:, 16:], images[..., 8:, 16:])
    even = torch.ones(1, 1, 16, 16)
    torch.testing.assert_close(Lapping((8, 8))(even), even)
    for nothing in (Lapping((8, 16), overlap=False), Lapping((1, 3)), Lapping((2, 1))):
        assert nothing(images) is images


def test_back_is_the_adjoint():
    lapping, one, other = Lapping((8, 4)).double(), *torch.randn(2, 1, 1, 24, 16).double()
    torch.testing.assert_close((lapping(one) * other).sum(), (one * lapping(other, back=True)).sum())
    assert mirrored(torch.tensor([1.0, 2.0, 3.0]), 2, -1).tolist() == [2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 2.0]


def test_what_one_block_makes_is_twice_its_side_and_no_more():
    spot = torch.zeros(1, 1, 1, 40)
    spot[..., 16:24] = torch.randn(8)
    made = Lapping((1, 8))(spot, back=True)[0, 0, 0]
    assert made.nonzero().flatten().tolist() == list(range(12, 28))


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_flat_blocks_of_any_heights_join_with_small_steps(side):
    """The largest step in the image of one flat block of height 1, at its borders and inside it, is known."""
    one = torch.zeros(1, 1, 1, 3 * side)
    one[..., side : 2 * side] = 1
    window = Lapping((1, side))(one, back=True)[0, 0, 0, side // 2 : side // 2 + 2 * side]
    steps = torch.cat([torch.zeros(1), window, torch.zeros(1)]).diff().abs()
    known = {4: 0.45, 8: 0.24, 16: 0.13, 32: 0.07}[side]
    assert steps.max() == pytest.approx(known, abs=0.01)
    torch.testing.assert_close(window[:side] + window[side:], torch.ones(side))  # equal blocks: a flat image


@pytest.mark.parametrize(("side", "most"), [(8, 1.4), (16, 1.4), (32, 1.4)])
def test_cells_that_know_nothing_of_each_other_show_no_grid(side, most):
    """Flat blocks of random heights. At no place in a block is the mean step much larger than elsewhere."""
    heights = torch.randn(64, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    joined = Lapping((1, side))(heights.repeat_interleave(side, -1), back=True)
    steps = joined.diff(dim=-1).abs().mean((0, 1, 2))
    place = torch.arange(1, len(steps) + 1) % side
    ratios = [(steps[place == each].mean() / steps[place != each].mean()).item() for each in range(side)]
    assert max(ratios) < most
