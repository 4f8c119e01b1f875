import pytest
import torch

from proav.config import Config
from proav.models.discriminators import (
    AudioDiscriminator,
    PatchDiscriminator,
    VideoDiscriminators,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    pick_frames,
)


def test_hinge_losses_by_hand():
    real, fake = (
        [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])],
        [torch.tensor([-2.0, 0.0]), torch.tensor([1.0])],
    )
    # first judge: (0 + 0.5) / 2 and (0 + 1) / 2, halved sum; second: 2 and 2
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((0.25 + 0.5) / 2 + (2 + 2) / 2)
    assert hinge_generator_loss(fake).item() == pytest.approx(1.0 - 1.0)
    assert hinge_discriminator_loss([torch.ones(3)], [-torch.ones(3)]).item() == 0


def test_feature_matching_by_hand_and_without_gradient_to_the_real_side():
    real = [torch.zeros(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)]
    fake = [torch.ones(2, 3, requires_grad=True), torch.full((4,), 3.0, requires_grad=True)]
    loss = feature_matching_loss(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 2) / 2)
    assert all(tensor.grad is None for tensor in real) and all(tensor.grad is not None for tensor in fake)


def test_frames_are_picked_per_clip():
    video = torch.randn(3, 3, 5, 4, 4)
    picked = pick_frames(video, torch.tensor([4, 0, 2]))
    assert torch.equal(picked, torch.stack([video[0, :, 4], video[1, :, 0], video[2, :, 2]]))


@pytest.mark.parametrize("sides", [(64, 64), (16, 16), (8, 64, 64), (2, 16, 16), (16, 32, 32)])
def test_maps_of_small_inputs_do_not_vanish(sides):
    judge = PatchDiscriminator(3, sides, width=4, num_layers=3)
    logits, features = judge(torch.randn(2, 3, *sides))
    assert len(features) == 4 and all(side >= 1 for side in logits.shape[2:])
    assert logits.shape[2:] == features[-1].shape[2:]
    logits.mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in judge.parameters())


def test_strides_halve_long_axes_only():
    judge = PatchDiscriminator(3, (4, 64, 32), width=4, num_layers=3)
    assert judge(torch.randn(1, 3, 4, 64, 32))[0].shape == (1, 1, 4, 8, 4)


def test_judges_of_clips():
    config = Config(
        clip={"num_frames": 8, "fps": 5, "height": 64, "width": 64},
        mel={"num_bins": 64, "hop": 100},
        mdsa={"plane_size": 8, "loss": {"discriminator_width": 8}},
    )
    logits, features = VideoDiscriminators(config)(torch.randn(2, 3, 8, 64, 64), torch.tensor([0, 7]))
    assert len(logits) == 2 and len(features) == 8
    logits, features = AudioDiscriminator(config)(torch.randn(2, 8, 64, 32))
    assert logits[0].shape == (2, 1, 8, 32) and len(features) == 4


def test_a_clip_is_judged_alone():
    judge = PatchDiscriminator(1, (16, 16), width=4, num_layers=2)
    images = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(judge(images)[0][1:2], judge(images[1:2])[0])
