"""What leaks: a modality decoded from the planes of the other."""

import pytest
import torch

from proav.evaluate.reconstruction import leaked
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
