"""The lapped transform against what is known of it: published gains, orthogonality, mirrors."""

import math

import numpy as np
import pytest
import torch

from proav.metrics.blockiness import blockiness
from proav.models import lapping
from proav.models.lapping import border_filter, extension, folded, lapped, mirrored
from proav.models.windows import WindowAnalysis, WindowSynthesis, set_windows


def cosines(side):
    """The orthonormal cosine transform of type II, [side, side]."""
    k, n = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    rows = math.sqrt(2 / side) * torch.cos(math.pi / side * k * (n + 0.5))
    rows[0] /= math.sqrt(2)
    return rows


@pytest.mark.parametrize(
    ("overlap", "angles", "known_db"),
    [(False, "ours", 8.83), (True, "published", 9.22), (True, "ours", 9.09)],
)
def test_coding_gain_of_a_smooth_signal_is_the_known_one(monkeypatch, overlap, angles, known_db):
    """Blocks of eight, a first-order process of correlation 0.95: the textbook's numbers, and what the ramp costs."""
    if angles == "published":
        monkeypatch.setattr(lapping, "rotation", lambda start, end: np.eye(len(start)))
    blocks, side = 9, 8
    places = torch.arange(blocks * side).double()
    covariance = 0.95 ** (places[:, None] - places).abs()
    code = torch.block_diag(*[cosines(side)] * blocks)
    if overlap:
        units = torch.eye(len(places), dtype=torch.float64)[:, None]
        code = code @ lapped(units, (1, side), (0, side // 2))[:, 0].T
    variances = (code @ covariance @ code.T).diagonal().view(blocks, side)[blocks // 2]
    assert -10 * variances.log10().mean() == pytest.approx(known_db, abs=0.005)


@pytest.mark.parametrize("side", [2, 4, 8, 16, 32])
def test_filters_are_orthogonal_and_keep_what_is_even_about_the_border(side):
    kernel = border_filter(side)
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(side), atol=1e-6, rtol=0)
    half = torch.randn(side // 2)
    even = torch.cat([half, half.flip(0)])
    torch.testing.assert_close(kernel @ even, even)


def test_lapped_images_go_back_and_keep_their_length_and_their_edges():
    images = torch.randn(2, 3, 24, 32)
    there = lapped(images, (8, 16), (4, 8))
    torch.testing.assert_close(lapped(there, (8, 16), (4, 8), back=True), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.norm(), images.norm())
    torch.testing.assert_close(there[..., :4, :8], images[..., :4, :8])
    assert not torch.allclose(there[..., 8:, 16:], images[..., 8:, 16:])
    flat = torch.ones(1, 1, 16, 16)
    torch.testing.assert_close(lapped(flat, (8, 8), (4, 4)), flat)
    torch.testing.assert_close(lapped(images, (8, 8), (0, 0)), images)


@pytest.mark.parametrize("shape", [(8, 8), (24, 16)])
def test_folded_is_the_adjoint_of_mirrored(shape):
    images, wide = torch.randn(2, *shape).double(), torch.randn(2, shape[0] + 8, shape[1] + 6).double()
    torch.testing.assert_close((mirrored(images, (4, 3)) * wide).sum(), (images * folded(wide, (4, 3))).sum())
    assert mirrored(torch.tensor([[1.0, 2.0, 3.0]]), (0, 2)).tolist() == [[2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 2.0]]


def test_windows_of_a_whole_basis_lose_nothing_up_to_the_edges():
    side, margin, images = 8, 4, torch.randn(2, 1, 24, 40)
    shape = (64, 1, 16, 16), (side, side), (margin, margin)
    parts = WindowAnalysis(*shape), WindowSynthesis(*shape)
    basis = torch.linalg.qr(torch.randn(64, 64))[0]
    with torch.no_grad():
        set_windows(*parts, basis.view(64, 1, side, side), scale=3.0)
        cells = parts[0](images)
        torch.testing.assert_close(parts[1](cells), images, atol=1e-5, rtol=0)
    blocks = lapped(images, (side, side), (margin, margin)).unfold(2, side, side).unfold(3, side, side)
    expected = torch.einsum("dpq,bchwpq->bdhw", basis.view(64, side, side), blocks) / 3
    torch.testing.assert_close(cells, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [4, 8, 32])
def test_flat_blocks_of_any_heights_join_by_straight_lines(side):
    """Each step from the middle of a block to that of the next is the same."""
    window = extension(side, side // 2).sum(1)
    slope = window[1] - window[0]
    rise = torch.full((side - 1,), slope.item())
    torch.testing.assert_close(window.diff(), torch.cat([rise, torch.zeros(1), -rise]), atol=1e-5, rtol=0)
    torch.testing.assert_close(window[:side] + window[side:], torch.ones(side))  # even blocks, an even image
    assert torch.equal(extension(side, 0), torch.eye(side))


def test_cells_that_know_nothing_of_each_other_show_no_grid():
    flat = torch.randint(0, 256, (1, 1, 16, 16)).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    joined = lapped(flat, (8, 8), (4, 4), back=True)
    grid, none = (
        blockiness(image[0, 0, None, ..., None].clamp(0, 255).byte().numpy(), side=16)
        for image in (flat, joined)
    )
    assert grid == float("inf") and none < 1.2
