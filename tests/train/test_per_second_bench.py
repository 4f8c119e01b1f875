"""The models of `bench.train.per_second` are ST-DiT if nothing is routed and no token has a second time."""

import pytest
import torch

from bench.train.per_second import AlignedSTDiT, RoutedSTDiT
from proav.diffusion.conditions import Conditions
from proav.geometry import LatentGeometry
from proav.models.stdit import STDiT
from tests.tiny import randomize, tiny_config

PLANES = (["mdsa.plane_channels.video=[8,1,1]", "mdsa.plane_channels.audio=[1,1,8]"], [])


@pytest.fixture(params=PLANES, ids=["uneven", "even"])
def config(request):
    return tiny_config("stdit.depth=4", "stdit.attention=full", *request.param)


def inputs(config):
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(3, *LatentGeometry.from_config(config).stack_shape, generator=draw)
    return noisy, torch.tensor([[0.2, 0.9]] * 3), Conditions(torch.tensor([0, 1, 2]))


def alike(config, kind):
    """(ST-DiT, a model of this kind with its weights)."""
    plain = randomize(STDiT(config, 2), 1)
    other = kind(config, 2).eval()
    missing, unexpected = other.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("project.") for name in missing)
    return plain, other


@torch.no_grad()
def test_with_all_tokens_the_routed_model_is_stdit(config):
    plain, routed = alike(config, RoutedSTDiT)
    expected = plain(*inputs(config))
    torch.testing.assert_close(routed(*inputs(config)), expected, atol=1e-5, rtol=1e-5)
    tokens = routed.layout.num_tokens
    routed.kept_BK = torch.arange(tokens).expand(3, -1)
    torch.testing.assert_close(routed(*inputs(config)), expected, atol=1e-5, rtol=1e-5)
    assert routed.routed_flops(0) == plain.flops() > routed.routed_flops(0.5)


@torch.no_grad()
def test_a_token_that_goes_around_keeps_its_features_and_is_not_seen(config):
    _, routed = alike(config, RoutedSTDiT)
    counts = routed.layout.of_modalities
    halves = [torch.arange(start, start + count // 2) for start, count in zip((0, counts[0]), counts)]
    routed.kept_BK = torch.cat(halves).expand(3, -1)
    seen = []
    hook = routed.blocks[1].register_forward_hook(lambda module, given, made: seen.append(given[0].shape[1]))
    routed(*inputs(config))
    hook.remove()
    assert seen == [sum(count // 2 for count in counts)]


@torch.no_grad()
def test_with_one_time_the_aligned_model_is_stdit(config):
    """A second time that equals the first, or that no token has, changes nothing."""
    plain, aligned = alike(config, AlignedSTDiT)
    expected, (noisy, times, conditions) = plain(*inputs(config)), inputs(config)
    none = torch.zeros(3, plain.layout.num_tokens, dtype=torch.bool)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(aligned(noisy, times, conditions), expected, **close)
    for second, chosen in ((times, ~none), (times / 2, none)):
        made, early = aligned(noisy, times, conditions, second_B2=second, chosen_BL=chosen)
        torch.testing.assert_close(made, expected, **close)
    assert early.shape == (3, plain.layout.num_tokens, config.stdit.width)
    made, _ = aligned(noisy, times, conditions, second_B2=times / 2, chosen_BL=~none)
    torch.testing.assert_close(made, plain(noisy, times / 2, conditions), **close)
    assert not torch.allclose(made, expected, atol=1e-3)
