"""Switched cells alone. Each cell of the data is made of one of a few kinds of blocks."""

import numpy as np
import pytest
import torch
from einops import rearrange

from proav.config import Config
from proav.geometry import PLANES, StreamGeometry
from proav.models.mdsa.lapping import Lapping
from proav.models.mdsa.linear_planes import FitSample, LinearPlanes
from proav.models.mdsa.switched import SwitchedCells

FRAMES, SIDE, RANK = 4, 4, 2
VALUES = 3 * FRAMES * SIDE**2


def kinds(count, seed=0):
    """Orthonormal blocks [count, RANK, V]."""
    blocks = torch.randn(count, VALUES, RANK, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(blocks)[0].transpose(1, 2)


def cells_of(blocks_KRV, chosen_L, seed=1):
    generator = torch.Generator().manual_seed(seed)
    codes_LR = torch.randn(len(chosen_L), blocks_KRV.shape[1], generator=generator)
    return torch.einsum("lr,lrv->lv", codes_LR, blocks_KRV[chosen_L])


def fitted(blocks_KRV, *, scale=1.0):
    cells = SwitchedCells(1 + RANK, len(blocks_KRV), VALUES)
    chosen_L = torch.arange(300) % len(blocks_KRV)
    cells.fit(cells_of(blocks_KRV, chosen_L), chosen_L + 0.5, scale)
    return cells


def blocks(blocks_KRV, chosen_BHW, seed=2):
    """[B, H, W, V]."""
    return cells_of(blocks_KRV, chosen_BHW.flatten(), seed).unflatten(0, chosen_BHW.shape)


def test_each_cell_finds_its_basis_and_is_exact_in_it():
    blocks_KRV, chosen_BHW = kinds(3), torch.arange(40).view(2, 4, 5) % 3
    cells, given = fitted(blocks_KRV), blocks(blocks_KRV, chosen_BHW)
    with torch.no_grad():
        codes = cells.analyse(given)
        made = cells.synthesize(codes)
    assert codes.shape == (2, 1 + RANK, 4, 5)
    torch.testing.assert_close(made, given, atol=1e-5, rtol=0)
    torch.testing.assert_close(codes[:, 0], (chosen_BHW - 1) * 1.5**0.5)  # unit variance if equally common


def test_bases_span_what_the_singular_value_decomposition_of_each_kind_does():
    blocks_KRV = kinds(2)
    cells = fitted(blocks_KRV)
    sample_LV = cells_of(blocks_KRV, torch.arange(300) % 2)
    for number, basis in enumerate(cells.synthesis):
        expected_DV = np.linalg.svd(sample_LV[number::2].double().numpy(), full_matrices=False)[2][:RANK]
        found_DV = basis.weight.detach().double().numpy()
        assert np.allclose(np.linalg.svd(found_DV @ expected_DV.T, compute_uv=False), 1, atol=1e-5)


def test_codes_are_divided_by_the_scale_and_the_number_is_not():
    blocks_KRV, chosen_BHW = kinds(2), torch.zeros(1, 2, 2, dtype=torch.long)
    given = blocks(blocks_KRV, chosen_BHW)
    with torch.no_grad():
        plain, scaled = (fitted(blocks_KRV, scale=scale).analyse(given) for scale in (1.0, 4.0))
    torch.testing.assert_close(scaled[:, 1:] * 4, plain[:, 1:])
    assert torch.equal(scaled[:, :1], plain[:, :1]) and plain[0, 0].unique().tolist() == [-1.0]


def test_between_two_numbers_their_bases_share_and_beyond_the_ends_nothing_changes():
    cells = fitted(kinds(3))
    codes = torch.randn(1, RANK, 2, 2, generator=torch.Generator().manual_seed(3))

    def made(number):
        with torch.no_grad():
            return cells.synthesize(torch.cat([torch.full((1, 1, 2, 2), number * 1.5**0.5), codes], dim=1))

    torch.testing.assert_close(made(0.25), 0.75 * made(0) + 0.25 * made(1))
    torch.testing.assert_close(made(-0.5), (made(-1) + made(0)) / 2)
    torch.testing.assert_close(made(7), made(1))
    torch.testing.assert_close(made(-7), made(-1))


def test_a_basis_that_no_cell_needs_stays_and_breaks_nothing():
    blocks_KRV = kinds(1)
    cells = SwitchedCells(1 + RANK, 4, VALUES)
    cells.fit(
        cells_of(blocks_KRV, torch.zeros(2, dtype=torch.long)), torch.tensor([0.0, 1.0]), 1.0
    )  # fewer cells than bases
    assert [bool(part.weight.any()) for part in cells.synthesis] == [True, False, True, False]
    given = blocks(blocks_KRV, torch.zeros(1, 1, 2, dtype=torch.long), seed=1)  # the same two cells
    with torch.no_grad():
        torch.testing.assert_close(cells.synthesize(cells.analyse(given)), given, atol=1e-5, rtol=0)


def test_gradients_reach_the_chosen_basis_alone():
    blocks_KRV = kinds(2)
    cells = fitted(blocks_KRV)
    given = blocks(blocks_KRV, torch.zeros(1, 2, 2, dtype=torch.long))
    cells.synthesize(cells.analyse(given)).square().sum().backward()
    moved = [
        [part.weight.grad.abs().sum() > 0 for part in parts] for parts in (cells.analysis, cells.synthesis)
    ]
    assert moved == [[True, False], [True, False]]


PICTURE = StreamGeometry(3, FRAMES, 4 * SIDE, 4 * SIDE, 4)
SOUND = StreamGeometry(1, 6, 4 * SIDE, 4 * SIDE, 4)


def lost(clips, geometry, *, sound, first=4, **switched):
    """Mean squared error of a path.

    clips: the clips to fit and to measure
    geometry: sizes of the stream
    sound: whether the stream is sound, whose first plane is HT instead of HW
    first: channels of the first plane in all
    switched: settings of the switched cells, passed to LinearPlanes; none for the plain path
    """
    plane = "HT" if sound else "HW"
    path = LinearPlanes(geometry, dict.fromkeys(PLANES, 1) | {plane: first}, sound=sound, **switched)
    sample = FitSample(sound=sound)
    sample.add(clips)
    path.fit(sample.clips())
    if switched:
        path.fit_switched(path.left_over(clips, 0))
    with torch.no_grad():
        planes = path.analyse(clips)
        assert planes[plane].shape[1] == first
        return (path.synthesize(planes) - clips).square().mean()


def test_pictures_of_two_kinds_lose_less_where_cells_choose():
    chosen_BHW = torch.randint(2, (24, 4, 4), generator=torch.Generator().manual_seed(5))
    cut = rearrange(blocks(kinds(2), chosen_BHW), "b h w (c p q) -> b c (h p) (w q)", p=SIDE, q=SIDE)
    clips = rearrange(Lapping((SIDE, SIDE))(cut, back=True), "b (c t) r s -> b c t r s", t=FRAMES)
    assert lost(clips, PICTURE, sound=False, switched=(2, 3)) < 0.3 * lost(clips, PICTURE, sound=False)


def test_steady_and_changing_sound_lose_less_where_cells_choose():
    generator = torch.Generator().manual_seed(6)
    blocks_KRV = torch.randn(2, 9, SIDE, 4 * SIDE, generator=generator)
    steady = blocks_KRV.mean(3, keepdim=True)
    blocks_KRV = torch.stack([blocks_KRV[0] + 2 * steady[0], (blocks_KRV - steady)[1]]).flatten(2)
    chosen_L = torch.randint(2, (24 * 6 * 4,), generator=generator)
    cells_LV = cells_of(blocks_KRV, chosen_L)
    images = rearrange(cells_LV, "(b t h) (p s) -> b 1 (h p) (t s)", t=6, h=4, p=SIDE)
    images = Lapping((SIDE, 4 * SIDE))(images, back=True)
    clips = rearrange(images, "b c r (t s) -> b c t r s", t=6)
    assert lost(clips, SOUND, sound=True, first=12, switched=(2, 11)) < 0.5 * lost(
        clips, SOUND, sound=True, first=12
    )


def test_motion_is_the_share_of_change_over_time():
    path = LinearPlanes(PICTURE, dict.fromkeys(PLANES, 1) | {"HW": 4}, sound=False, switched=(2, 3))
    still = torch.randn(3, 1, SIDE**2).expand(-1, FRAMES, -1)
    there_and_back = still * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    blocks_LV = torch.stack([still.flatten(), there_and_back.flatten(), (still + there_and_back).flatten()])
    torch.testing.assert_close(path._motion(blocks_LV), torch.tensor([0.0, 1.0, 0.5]))
    path = LinearPlanes(SOUND, dict.fromkeys(PLANES, 1) | {"HT": 4}, sound=True, switched=(2, 3))
    tone = torch.randn(SIDE, 1).expand(-1, 4 * SIDE)
    beaten = tone * torch.tensor([1.0, -1.0]).repeat(2 * SIDE)
    torch.testing.assert_close(path._motion(torch.stack([tone, beaten]).flatten(1)), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("linear", "said"),
    [
        ({"bases": {"video": 2}, "switched_channels": 16}, "leaves none of the 16 channels of video's HW"),
        ({"bases": {"audio": 2}, "switched_channels": 17}, "leaves none of the 16 channels of audio's HT"),
        ({"bases": {"audio": 2}, "enabled": False}, "bases.audio=2 needs mdsa.linear_planes.enabled=true"),
    ],
)
def test_impossible_settings_say_what_to_write(linear, said):
    with pytest.raises(ValueError, match=said):
        Config(mdsa={"linear_planes": linear})
    assert Config(mdsa={"linear_planes": {"switched_channels": 16}}).mdsa.linear_planes.switched("video") == (
        1,
        0,
    )
