"""What leaks: a modality decoded from the planes of the other. Clips that means leave out."""

import math

import pytest
import torch

from proav.evaluate.reconstruction import leaked, mean_scores, trivial_scores
from proav.generation.coder import LatentCoder
from proav.models.mdsa import MDSA
from tests.tiny import tiny_config

APART = ("mdsa.group_cross.enabled=false", "mdsa.bi_block.enabled=false")


def coder_of(*words) -> LatentCoder:
    """The coder of an MDSA in which no weight is zero, as after training."""
    config = tiny_config(*words)
    model, generator = MDSA(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return LatentCoder(config, model.eval())


@pytest.mark.parametrize(("words", "leaks"), [(APART, False), ((), True)])
@torch.inference_mode()
def test_a_modality_without_planes_of_its_own_is_what_it_is_without_any_if_nothing_leaks(words, leaks):
    coder = coder_of(*words)
    planes = torch.randn(2, *coder.latents.stack_shape, generator=torch.Generator().manual_seed(1))
    of_nothing = coder.decode(torch.zeros_like(planes))
    for found, without in zip(leaked(coder, planes), of_nothing, strict=True):
        assert torch.equal(found, without) != leaks


def test_a_still_clip_counts_everywhere_but_in_the_temporal_mean():
    config = tiny_config()
    pictures = torch.rand(4, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    pictures[1] = pictures[1, :, :1]  # still
    pictures[2] = 0.25  # of one colour
    sounds = torch.rand(4, 4, 32, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    scores = {name: values.numpy() for name, values in trivial_scores(config, pictures, sounds, None).items()}
    means = mean_scores(scores, sources=["a", "b", "c", "d"], config=config)
    assert means["psnr_temporal_mean_db"] == pytest.approx(scores["psnr_temporal_mean_db"][[0, 3]].mean())
    assert means["psnr_mean_colour_db"] == pytest.approx(scores["psnr_mean_colour_db"][[0, 1, 3]].mean())
    assert means["num_clips"] == 3 and means["num_one_colour_clips_left_out"] == 1
    assert means["num_still_clips_without_temporal_mean"] == 1
    broken = scores | {"psnr_db": scores["psnr_mean_colour_db"].copy()}
    broken["psnr_db"][3] = math.nan
    assert math.isnan(mean_scores(broken, sources=["a"] * 4, config=config)["psnr_db"])
    still = {name: values[[1]] for name, values in scores.items()}
    assert mean_scores(still, sources=["b"], config=config)["psnr_temporal_mean_db"] is None
