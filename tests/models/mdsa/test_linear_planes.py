"""The linear path alone. The clips are made of as many kinds of blocks as a plane has channels."""

import numpy as np
import pytest
import torch
from einops import rearrange

from proav.geometry import StreamGeometry
from proav.models.mdsa.linear_planes import PICTURE_CUTS, SOUND_CUTS, FitSample, LinearPlanes

CHANNELS = {"HW": 4, "WT": 4, "HT": 4}
PICTURE = StreamGeometry(3, 8, 32, 32, 8)
SOUND = StreamGeometry(1, 8, 16, 8, 8)
BLOCKS = {"HW": (4, 4), "WT": (32, 4), "HT": (4, 32)}
SOUND_BLOCKS = {"HW": (2, 1), "WT": (16, 1), "HT": (2, 8)}
"""Rows and columns of each plane's blocks in a frame."""


def unlapped(clips, name, *, sound, back=True):
    """The clips whose lapped images are `clips`. back=False: the lapped images of `clips`.

    clips: [B, C, T, H, W]
    name: the plane, HW, WT or HT
    sound: whether the clips are sound
    back: the direction
    """
    cut, geometry = (SOUND_CUTS, SOUND) if sound else (PICTURE_CUTS, PICTURE)
    lapping = LinearPlanes(geometry, CHANNELS, sound=sound).lapping[name]
    return cut[name].to_clip(lapping(cut[name].to_images(clips), back=back), *clips.shape[1:3])


def part(geometry, blocks, name, *, clips=6, rank=4, seed=0, overlap=True):
    """Clips of mean zero that have rank `rank` in one plane; for WT and HT their mean over time is zero too.

    geometry: sizes of the stream
    blocks: rows and columns of each plane's blocks in a frame
    name: the plane, HW, WT or HT
    clips: half the number of clips; the other half are their negatives
    rank: number of independent kinds of blocks
    seed: seed of the random blocks and codes
    overlap: whether the blocks are those of the lapped images
    """
    generator = torch.Generator().manual_seed(seed)
    (rows, columns), channels = blocks[name], geometry.channels
    kinds_DV = torch.randn(rank, channels * rows * columns, generator=generator)
    h, w, t = geometry.rows // rows, geometry.columns // columns, 1 if name == "HW" else geometry.num_frames
    codes = torch.randn(clips, t, h, w, rank, generator=generator)
    codes = codes if name == "HW" else codes - codes.mean(1, keepdim=True)
    shape = {"c": channels, "p": rows, "q": columns}
    made = rearrange(codes @ kinds_DV, "b t h w (c p q) -> b c t (h p) (w q)", **shape) / 8
    made = made.expand(-1, -1, geometry.num_frames, -1, -1)
    made = unlapped(made, name, sound=geometry is SOUND) if overlap else made
    return torch.cat([made, -made])


def fitted(clips, geometry=PICTURE, *, channels=CHANNELS, overlap=True, sound=False, size=5):
    path, sample = LinearPlanes(geometry, channels, sound=sound, overlap=overlap), FitSample(sound=sound)
    for batch in clips.split(size):
        sample.add(batch)
    path.fit(sample.clips())
    return path


def passed(path, clips):
    with torch.no_grad():
        return path.synthesize(path.analyse(clips))


def assert_exact(clips, made):
    torch.testing.assert_close(made, clips, atol=2e-5, rtol=0)


@pytest.mark.parametrize("overlap", [True, False])
def test_pictures_of_the_planes_rank_are_exact_and_so_is_their_mean(overlap):
    mean = torch.linspace(-0.5, 0.5, 96).view(3, 1, 32, 1)
    clips = part(PICTURE, BLOCKS, "HW", overlap=overlap)
    clips = clips + part(PICTURE, BLOCKS, "WT", seed=1, overlap=overlap) + mean
    path = fitted(clips, overlap=overlap)
    assert_exact(clips, passed(path, clips))
    torch.testing.assert_close(path.mean.value.detach(), mean[:, 0], atol=1e-6, rtol=0)
    unseen = part(PICTURE, BLOCKS, "HW", clips=9, overlap=overlap) + mean  # the same blocks, other clips
    assert_exact(unseen, passed(path, unseen))


def test_sound_of_the_first_planes_rank_is_exact():
    clips = part(SOUND, SOUND_BLOCKS, "HT") + 0.3
    path = fitted(clips, SOUND, sound=True)
    assert_exact(clips, passed(path, clips))
    planes = path.analyse(clips)
    assert max(planes[name].abs().max() for name in ("HW", "WT")) < 0.05  # nothing was left for them


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("sound", "name"), [(False, "HW"), (False, "WT"), (True, "HT")])
def test_kernels_span_what_the_singular_value_decomposition_does(sound, name, overlap):
    """The kernels are compared on lapped images, in which each kernel is one block."""
    geometry, blocks = (SOUND, SOUND_BLOCKS) if sound else (PICTURE, BLOCKS)
    (rows, columns), clips = blocks[name], part(geometry, blocks, name, overlap=overlap)
    path = fitted(clips, geometry, sound=sound, overlap=overlap)
    images = unlapped(clips, name, sound=sound, back=False) if overlap else clips
    cells_LV = rearrange(images, "b c t (h p) (w q) -> (b t h w) (c p q)", p=rows, q=columns).double().numpy()
    expected_DV = np.linalg.svd(cells_LV, full_matrices=False)[2][:4]
    planes = empty_planes(path)
    units = torch.eye(4).view(4, 4, 1, 1)  # each channel of the second cell alone
    place = planes[name].shape[3] + 1
    plane = torch.zeros(4, 4, planes[name][0, 0].numel())
    plane[..., place] = units.view(4, 4)
    alone = {key: torch.zeros(4, *value.shape[1:]) for key, value in planes.items()}
    alone[name] = plane.view_as(alone[name])
    with torch.no_grad():
        made = path.synthesize(alone) - path.mean.value[:, None]
    made = unlapped(made, name, sound=sound, back=False) if overlap else made
    cells = rearrange(made, "b c t (h p) (w q) -> b (t h w) (c p q)", p=rows, q=columns)
    filled = cells.abs().sum((0, 2)) > 1e-4
    assert filled.sum() == (geometry.num_frames if name == "HW" else 1)  # one block, nothing beside it
    found_DV = cells[:, filled][:, 0].double().numpy()
    found_DV /= np.linalg.norm(found_DV, axis=1, keepdims=True)
    # the cosines of the angles between the two subspaces
    assert np.allclose(np.linalg.svd(found_DV @ expected_DV.T, compute_uv=False), 1, atol=1e-5)
    assert np.allclose(found_DV @ found_DV.T, np.eye(4), atol=1e-5)


def reference(clips, order, blocks):
    """Mean squared error that is left of centred clips after numpy's decomposition for each plane in turn.

    HW is decomposed on the mean of the frames, the other planes on all frames.
    """
    rest = clips - clips.mean((0, 2, 4), keepdim=True)
    sound = order[0] == "HT"
    for name in order:
        shape = dict(zip("pq", blocks[name]))
        shown = rest.mean(2, keepdim=True) if name == "HW" else rest
        shown = unlapped(shown, name, sound=sound, back=False)
        cells_LV = rearrange(shown, "b c t (h p) (w q) -> (b t h w) (c p q)", **shape).double().numpy()
        kinds_DV = np.linalg.svd(cells_LV, full_matrices=False)[2][: CHANNELS[name]]
        taken = torch.from_numpy(cells_LV @ kinds_DV.T @ kinds_DV).float()
        sides = {"b": len(clips), "t": shown.shape[2], "h": clips.shape[3] // shape["p"]}
        taken = rearrange(taken, "(b t h w) (c p q) -> b c t (h p) (w q)", **shape, **sides, c=clips.shape[1])
        rest = rest - unlapped(taken, name, sound=sound)
    return rest.square().mean().item()


@pytest.mark.parametrize("sound", [False, True])
def test_planes_are_taken_off_in_order_and_lose_what_exact_decompositions_lose(sound):
    geometry, blocks = (SOUND, SOUND_BLOCKS) if sound else (PICTURE, BLOCKS)
    order = ("HT", "WT", "HW") if sound else ("HW", "WT", "HT")
    smooth = torch.nn.functional.avg_pool3d(torch.randn(96, *geometry.input_shape), 3, stride=1, padding=1)
    path = fitted(smooth, geometry, sound=sound)
    assert tuple(path.cuts) == order
    lost = (passed(path, smooth) - smooth).square().mean().item()
    assert lost == pytest.approx(reference(smooth, order, blocks), rel=0.03)


def test_still_pictures_leave_nothing_to_time():
    clips = part(PICTURE, BLOCKS, "HW")
    planes = fitted(clips).analyse(clips)
    assert planes["HW"].square().mean().item() == pytest.approx(1, rel=1e-3)
    assert max(planes[name].abs().max() for name in ("WT", "HT")) < 0.05  # rounding, which is not scaled up


def test_codes_have_unit_mean_square_by_one_number_a_plane():
    clips = part(PICTURE, BLOCKS, "HW", clips=40) + part(PICTURE, BLOCKS, "WT", seed=1, clips=40)
    path = fitted(clips)
    for name in ("HW", "WT"):
        assert path.analyse(clips)[name].square().mean().item() == pytest.approx(1, rel=0.1)
        lengths = path.synthesis[name].kernels.flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, lengths[:1].expand(4))


def test_fits_are_equal_to_the_bit_and_leave_the_random_stream_alone():
    clips = part(PICTURE, BLOCKS, "WT", rank=9)
    state = torch.get_rng_state()
    one, other = fitted(clips), fitted(clips)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())
    cut = fitted(clips, size=1).state_dict()
    assert all(torch.allclose(weight, cut[name], atol=1e-5) for name, weight in one.state_dict().items())


def test_more_channels_than_values_are_silent():
    path = fitted(part(SOUND, SOUND_BLOCKS, "HW"), SOUND, sound=True)
    kernels = path.synthesis["HW"].kernels, path.analysis["HW"].kernels  # their blocks have two values
    assert all(kernel[:2].any() and not kernel[2:].any() for kernel in kernels)


def empty_planes(path):
    """Planes of zeros for one clip."""
    codes = path.analyse(torch.zeros(1, *path.geometry.input_shape))
    return {name: torch.zeros_like(plane) for name, plane in codes.items()}


def test_blocks_reach_into_their_neighbours():
    path = LinearPlanes(PICTURE, CHANNELS, sound=False)
    for part_of_path in (*path.analysis.values(), *path.synthesis.values()):
        torch.nn.init.normal_(part_of_path.weight)
    clip = torch.zeros(1, *PICTURE.input_shape)
    spot = clip.clone()
    spot[0, :, 2, 13, 13] = 1  # in the cell (3, 3), at its upper left
    touched = path.analyse(spot)["HW"] != path.analyse(clip)["HW"]
    assert touched.any(1)[0].nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    planes = empty_planes(path)
    made = path.synthesize(planes | {"WT": planes["WT"].index_fill(3, torch.tensor(3), 1.0)})
    assert made.abs().sum((0, 1, 2, 3)).nonzero().flatten().tolist() == list(range(10, 18))


def test_blocks_of_sound_reach_across_frames():
    path = LinearPlanes(SOUND, CHANNELS, sound=True)
    torch.nn.init.normal_(path.synthesis["HT"].weight)
    planes = empty_planes(path)
    planes["HT"][0, :, 3] = 1
    made = path.synthesize(planes).abs().sum((0, 1, 3))  # [T, S]
    assert made.flatten().nonzero().flatten().tolist() == list(
        range(20, 36)
    )  # its 8 columns, 4 beside each end
