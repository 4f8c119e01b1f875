"""Conditions of unlike samples in one batch."""

import torch

from proav.diffusion.conditions import Conditions, join_conditions


def test_clips_without_a_masked_clip_get_zeros_beside_those_with_one():
    told = torch.randn(2, 5, 6, 4, 4)
    joined = join_conditions([Conditions(torch.tensor([1])), Conditions(torch.tensor([0, 2]), told)])
    assert joined.labels_B.tolist() == [1, 0, 2]
    assert torch.equal(joined.masked_BEPNN, torch.cat([torch.zeros(1, 5, 6, 4, 4), told]))
    assert join_conditions([Conditions(torch.tensor([1]))] * 2).masked_BEPNN is None


def test_dropping_takes_the_label_and_keeps_what_is_given():
    told = torch.randn(2, 5, 6, 4, 4)
    dropped = Conditions(torch.tensor([0, 1]), told).dropped(3, torch.tensor([True, False]))
    assert dropped.labels_B.tolist() == [3, 1] and dropped.masked_BEPNN is told
