"""Linear planes on signals whose answer is known, and against numpy's singular value decomposition."""

import numpy as np
import pytest
import torch
from einops import rearrange

from proav.metrics.fidelity import psnr_db
from proav.metrics.plane_components import LinearPlanes, principal_directions

SIDE, SHAPE = 4, (3, 4, 16, 16)  # C T H W


def draw(seed, count=12, shape=SHAPE):
    return torch.empty(count, *shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))


def in_chunks(x, size=5):
    """A function that gives the same data in pieces at each call."""
    return lambda: x.split(size)


def fit(x, **channels):
    return LinearPlanes.fit(in_chunks(x), side=SIDE, channels={"HW": 1, "WT": 1, "HT": 1} | channels)


def explained(rows, count):
    """The share of the variance of rows [n, d] that numpy's first `count` directions leave."""
    rows = rows.double().numpy()
    centred = rows - rows.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    return (values[count:] ** 2).sum() / (values**2).sum()


def left(rows, mean, directions):
    centred = rows - mean
    return float((centred - centred @ directions.T @ directions).square().sum() / centred.square().sum())


def test_a_still_picture_is_exact_with_enough_channels():
    still = draw(0)[:, :, :1].expand(-1, -1, 4, -1, -1).contiguous()
    code = fit(still, HW=48)  # 3 colours x 4 x 4 pixels
    assert (psnr_db(code(still), still) > 110).all()
    unseen = draw(1)[:, :, :1].expand(-1, -1, 4, -1, -1).contiguous()
    assert (psnr_db(code(unseen), unseen) > 110).all()  # any still picture, not only those of the fit


def test_planes_of_low_rank_are_exact():
    """The patches of each plane are made of as many directions as the plane has channels."""
    generator = torch.Generator().manual_seed(0)
    base = torch.linalg.qr(torch.randn(48, 2, generator=generator))[0].T
    codes = torch.randn(30, SIDE, SIDE, 2, generator=generator)
    still = rearrange(codes @ base, "b n m (c p q) -> b c 1 (n p) (m q)", c=3, p=4)
    columns = torch.linalg.qr(torch.randn(192, 3, generator=generator))[0].T
    moving = rearrange(
        torch.randn(30, 4, SIDE, 3, generator=generator) @ columns,
        "b t n (c h q) -> b c t h (n q)",
        c=3,
        h=16,
    )
    moving = moving - moving.mean(2, keepdim=True)  # HW has the temporal mean
    images = (still + moving) / 8
    assert images.abs().max() < 1
    code = fit(images, HW=2, WT=3)
    assert (psnr_db(code(images), images) > 100).all()
    assert (psnr_db(fit(images, HW=2, WT=2)(images), images) < 60).all()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_directions_are_those_of_the_singular_value_decomposition(count):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(300, 60, generator=generator) * torch.linspace(3, 0.1, 60) + 5
    mean, directions = principal_directions(in_chunks(rows, 64), count)
    expected = np.linalg.svd((rows - rows.mean(0)).double().numpy())[2][:count]
    assert torch.allclose(mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(directions @ directions.T, torch.eye(count), atol=1e-5)
    assert left(rows, mean, directions) == pytest.approx(explained(rows, count), abs=2e-4)
    cosines = np.linalg.svd(directions.double().numpy() @ expected.T, compute_uv=False)
    assert cosines.min() > 0.95  # of the angles between the two subspaces


def test_data_of_exactly_the_rank_are_spanned_and_the_chunks_change_nothing_that_counts():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, 5, generator=generator) @ torch.randn(5, 300, generator=generator) + 1
    mean, directions = principal_directions(in_chunks(rows), 5)
    assert left(rows, mean, directions) < 1e-10
    expected = np.linalg.svd((rows - rows.mean(0)).double().numpy(), full_matrices=False)[2][:5]
    cosines = np.abs((directions.double().numpy() * expected).sum(1))
    assert cosines == pytest.approx(np.ones(5), abs=1e-4)  # direction by direction, in order
    other = principal_directions(in_chunks(rows, 77), 5)[1]
    assert torch.allclose((directions * other).sum(1).abs(), torch.ones(5), atol=1e-4)
    again = principal_directions(in_chunks(rows), 5)
    assert torch.equal(again[0], mean) and torch.equal(again[1], directions)  # to the bit


def test_more_channels_are_never_worse_on_the_training_data():
    images = torch.nn.functional.avg_pool3d(draw(3, 20, (3, 8, 32, 32)), 2) * 2  # smoother than noise
    errors = []
    for count in (1, 2, 4, 8, 16, 48):
        errors.append(fit(images, HW=count, WT=count, HT=count)(images).sub(images).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.2 * errors[-1]


def test_planes_have_the_channels_that_they_were_given():
    code = fit(draw(4), HW=7, WT=2, HT=5)
    shapes = {name: tuple(values.shape[1:]) for name, values in code.encode(draw(5, 2)).items()}
    assert shapes == {"HW": (SIDE, SIDE, 7), "WT": (4, SIDE, 2), "HT": (4, SIDE, 5)}


def test_a_clip_is_coded_as_if_it_were_alone():
    code, clips = fit(draw(4), HW=7, WT=2, HT=5), draw(5, 6)
    assert torch.allclose(code(clips)[3:4], code(clips[3:4]), atol=1e-6)
