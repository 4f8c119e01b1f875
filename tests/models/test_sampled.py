"""Weights of rows, columns and frames for clips of another size: what is enlarged is read as before."""

import pytest
import torch
from torch.nn import functional as F

from proav.models.mdsa import MDSA
from proav.models.sampled import Sampled, resize_matrix, resized, resized_weights, sampled_weights
from tests.tiny import randomize, tiny_config


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def enlarged(clip_BCTHW, frames, rows, columns):
    """The clip resized along its axes, as `resize_matrix` does it."""
    for axis, size in zip((-3, -2, -1), (frames, rows, columns), strict=True):
        matrix = resize_matrix(clip_BCTHW.shape[axis], size).float()
        clip_BCTHW = torch.tensordot(clip_BCTHW, matrix, dims=([axis], [1])).movedim(-1, axis)
    return clip_BCTHW


@pytest.mark.parametrize(("num_from", "num_to"), [(8, 16), (4, 6), (1, 5), (3, 3)])
def test_enlarging_is_linear_interpolation_and_shrinking_undoes_it(num_from, num_to):
    there, back = resize_matrix(num_from, num_to), resize_matrix(num_to, num_from)
    torch.testing.assert_close(back @ there, torch.eye(num_from, dtype=torch.float64))
    torch.testing.assert_close(there.sum(1), torch.ones(num_to, dtype=torch.float64))
    values = random(1, 1, num_from).double()
    torch.testing.assert_close(values @ there.T, F.interpolate(values, num_to, mode="linear"))


def test_a_reader_finds_in_an_enlarged_clip_what_it_found_before():
    small, large = (Sampled((5, 3, *sides), (2, 3), reads=True) for sides in ((4, 6), (8, 9)))
    weight, patch = random(5, 3 * 4 * 6), random(1, 3, 1, 4, 6, seed=1)
    read = resized(weight, small, large).flatten(1) @ enlarged(patch, 1, 8, 9).flatten()
    torch.testing.assert_close(read, weight @ patch.flatten())


def test_what_is_drawn_is_drawn_larger():
    small, large = (Sampled((3, *sides, 5), (1, 2)) for sides in ((4, 6), (8, 9)))
    weight, features = random(3 * 4 * 6, 5), random(5, seed=1)
    drawn = (resized(weight, small, large) @ features)[None, :, None]
    torch.testing.assert_close(drawn, enlarged((weight @ features).view(1, 3, 1, 4, 6), 1, 8, 9))


def test_rows_that_belong_to_no_sample_stay():
    small, large = (Sampled((length, 4), (0,), extra=1) for length in (2, 6))
    made = resized(random(3, 4), small, large)
    assert made.shape == (7, 4) and torch.equal(made[-1], random(3, 4)[-1])


@torch.no_grad()
@pytest.mark.parametrize("overlap", ["true", "false"])
def test_a_model_reads_and_draws_enlarged_clips_as_the_trained_one(overlap):
    """Smooth clips, but blocks of random values: enlarged one by one, they join differently."""
    words = (f"mdsa.linear_planes.overlap={overlap}", "mdsa.refiner.enabled=false")
    small, large = MDSA(tiny_config(*words)), MDSA(tiny_config(*words, "clip.height=64", "clip.width=64"))
    weights, changed = resized_weights(randomize(small, 1).state_dict(), small, large)
    large.load_state_dict(weights)
    assert changed and all("audio" not in name for name in changed)  # native mel images are not enlarged

    def error(made, wanted):
        return float((made - wanted).norm() / wanted.norm())

    video, mel = enlarged(random(2, 3, 2, 4, 4), 4, 32, 32), random(2, 4, 32, 16, seed=1)
    planes, larger_planes = small.encode(video, mel), large.eval().encode(enlarged(video, 4, 64, 64), mel)
    errors = {name: error(larger_planes[name], plane) for name, plane in planes.items()}
    assert max(errors.values()) < 0.1, errors
    drawn, sound = small.decode(planes)
    larger, larger_sound = large.decode(planes)
    torch.testing.assert_close(larger_sound, sound)
    assert error(larger, enlarged(drawn, 4, 64, 64)) < 0.3


def test_block_kernels_keep_the_length_that_the_optimizer_moves_them_by():
    small, large = MDSA(tiny_config()), MDSA(tiny_config("clip.height=64", "clip.width=64"))
    weights, changed = resized_weights(randomize(small, 1).state_dict(), small, large)
    kernels = [name for name in changed if name.startswith("linear.") and name.endswith("weight")]
    assert len(kernels) == 6  # three planes of the picture, both ways
    for name in kernels:
        before, after = (one[name].square().sum(1).mean() for one in (small.state_dict(), weights))
        torch.testing.assert_close(after, before)


def test_a_kernel_of_zeros_stays_one():
    small, large = MDSA(tiny_config()), MDSA(tiny_config("clip.height=64", "clip.width=64"))
    weights, changed = resized_weights(small.state_dict(), small, large)  # not fitted: all are zero
    assert changed and all(value.isfinite().all() for value in weights.values())


def test_the_same_size_changes_nothing():
    model = randomize(MDSA(tiny_config()), 1)
    weights, changed = resized_weights(model.state_dict(), model, MDSA(tiny_config()))
    assert not changed and all(
        torch.equal(weights[name], value) for name, value in model.state_dict().items()
    )


def test_every_weight_that_depends_on_the_size_is_named():
    """All sizes at once: frames, rows, columns, mel bins and columns, plane side; with switched cells."""
    words = (
        "mdsa.plane_channels.video=[6,4,4]", "mdsa.plane_channels.audio=[2,2,6]",
        "mdsa.linear_planes.bases.video=2", "mdsa.linear_planes.bases.audio=3",
        "mdsa.linear_planes.switched_channels=3",
    )  # fmt: skip
    other = (
        "clip.num_frames=8", "clip.fps=10", "clip.height=64", "clip.width=96", "mel.num_bins=64",
        "mel.hop=100", "mdsa.plane_size=8", "data.segment_seconds=2",
    )  # fmt: skip
    small, large = MDSA(tiny_config(*words)), MDSA(tiny_config(*words, *other))
    shapes = ({name: value.shape for name, value in model.state_dict().items()} for model in (small, large))
    before, after = shapes
    differing = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and differing <= sampled_weights(small).keys()
    large.load_state_dict(resized_weights(small.state_dict(), small, large)[0])
