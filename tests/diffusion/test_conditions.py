"""Conditions of unlike samples in one batch."""

import torch

from proav.diffusion.conditions import Conditions, join_conditions
from proav.text import NO_LABEL


def test_clips_without_a_masked_clip_get_zeros_beside_those_with_one():
    told = torch.randn(2, 5, 6, 4, 4)
    joined = join_conditions([Conditions(torch.tensor([1])), Conditions(torch.tensor([0, 2]), told)])
    assert joined.labels_BK.tolist() == [[1], [0], [2]]
    assert torch.equal(joined.masked_BEPNN, torch.cat([torch.zeros(1, 5, 6, 4, 4), told]))
    assert join_conditions([Conditions(torch.tensor([1]))] * 2).masked_BEPNN is None


def test_dropping_takes_the_label_and_keeps_what_is_given():
    told = torch.randn(2, 5, 6, 4, 4)
    dropped = Conditions(torch.tensor([0, 1]), told).dropped(3, torch.tensor([True, False]))
    assert dropped.labels_BK.tolist() == [[3], [1]] and dropped.masked_BEPNN is told


def test_clips_of_several_labels_share_a_batch_with_clips_of_one():
    several, one = Conditions(torch.tensor([[2, 0, 1]])), Conditions(torch.tensor([1, 3]))
    joined = join_conditions([several, one])
    assert joined.labels_BK.tolist() == [[2, 0, 1], [1, NO_LABEL, NO_LABEL], [3, NO_LABEL, NO_LABEL]]
    assert joined.conditioned_B(3).tolist() == [True, True, False]
    dropped = joined.dropped(3, torch.tensor([True, False, True]))
    assert dropped.labels_BK.tolist() == [[3, -1, -1], [1, -1, -1], [3, -1, -1]]
    assert dropped.rows(slice(1, 2)).labels_BK.tolist() == [[1, -1, -1]]


def test_vectors_are_zeros_where_others_have_them_and_are_dropped_with_the_labels():
    caption, words = torch.randn(2, 4), torch.randn(1, 3, 5)
    joined = join_conditions(
        [
            Conditions(torch.tensor([3, 3]), vectors={"caption": caption}),
            Conditions(torch.tensor([3]), vectors={"words": words}),
            Conditions(torch.tensor([3])),
        ]
    )
    assert torch.equal(joined.vectors["caption"], torch.cat([caption, torch.zeros(2, 4)]))
    assert torch.equal(joined.vectors["words"][2], words[0]) and not joined.vectors["words"][[0, 1, 3]].any()
    assert joined.conditioned_B(3).tolist() == [True, True, True, False]
    dropped = joined.dropped(3, torch.tensor([False, True, True, True]))
    assert dropped.conditioned_B(3).tolist() == [True, False, False, False]
    assert torch.equal(dropped.vectors["caption"][0], caption[0])


def test_stored_rows_tell_labels_and_vectors():
    rows = {"label": torch.tensor([[1, 0]]), "vector.caption": torch.ones(1, 4), "joint": torch.zeros(1)}
    told = Conditions.of_rows(rows)
    assert told.labels_BK.tolist() == [[1, 0]] and torch.equal(told.vectors["caption"], torch.ones(1, 4))
