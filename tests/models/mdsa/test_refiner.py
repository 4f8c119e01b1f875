import pytest
import torch

from proav.config import RefinerConfig
from proav.models.mdsa.refiner import Refiner

SMALL = {"width": 4, "levels": 3, "patch": 2}


def make(channels=3, *, sound=False, trained=True, **settings):
    torch.manual_seed(0)
    refiner = Refiner(channels, RefinerConfig(**SMALL | settings), sound=sound)
    if trained:
        torch.nn.init.normal_(refiner.leave.weight)
    return refiner


@pytest.mark.parametrize("sound", [False, True])
def test_images_pass_to_the_bit_at_first_and_all_pixels_change_once_trained(sound):
    images = torch.randn(2, 1, 4, 16, 16)
    assert torch.equal(make(1, sound=sound, trained=False)(images), images)
    assert (make(1, sound=sound)(images) != images).all()


@pytest.mark.parametrize("settings", [{}, {"levels": 1}, {"patch": 1, "levels": 2}, {"patch": 4, "width": 6}])
def test_shapes(settings):
    images = torch.randn(1, 3, 4, 32, 16)
    assert make(**settings)(images).shape == images.shape


def reach(refiner, images, t, r, s):
    """The pixels of the result that change with one input pixel: bool [T, R, S].

    refiner: the network.
    images: [1, C, T, R, S].
    t, r, s: frame, row and column of the input pixel.
    """
    changed = images.clone()
    changed[:, :, t, r, s] += 1
    return (refiner(changed) - changed - refiner(images) + images).abs().amax((0, 1)) > 1e-5


def test_a_pixel_reaches_across_the_borders_of_patches_and_frames():
    seen = reach(make(levels=2), torch.randn(1, 3, 6, 32, 32), 3, 15, 15)  # the last of its cell of 4 x 4
    assert seen[3, 16, 16] and seen[3, 12, 18] and seen[2, 16, 16] and seen[4, 14, 14]
    assert not seen[3, 0, 0] and not seen[3, 31, 31]


def test_sound_is_one_picture_of_all_frames():
    images = torch.randn(1, 1, 4, 16, 8)
    seen = reach(make(1, sound=True, levels=1), images, 1, 8, 7)  # the last column of its frame
    assert seen[2, 8, 0] and not seen[3].any() and not seen[2, :, 6:].any()
    refiner = make(1, sound=True)
    whole = images.movedim(2, 3).flatten(3)[:, :, None]  # [B, C, 1, M, T S]
    torch.testing.assert_close(refiner(whole).flatten(), refiner(images).movedim(2, 3).flatten())


def test_recomputation_gives_equal_gradients():
    refiner, images, gradients = make(), torch.randn(1, 3, 4, 16, 16), []
    for recompute in (False, True):
        refiner.zero_grad()
        refiner(images, recompute=recompute).square().mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in refiner.named_parameters()})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    assert all(gradient.any() for gradient in gradients[0].values())


def test_a_clip_does_not_depend_on_its_batch_and_the_result_is_float32():
    refiner, images = make(), torch.randn(3, 3, 4, 16, 16)
    torch.testing.assert_close(refiner(images)[1:2], refiner(images[1:2]), atol=1e-5, rtol=1e-5)
    expected = refiner(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = refiner(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
