import pytest
import torch

from proav.geometry import PLANE_NAMES
from proav.models.mdsa.planes import (
    AxisCollapse,
    Projection,
    broadcast_planes,
    masked_condition,
    stack_mask,
    stack_planes,
    unstack_planes,
)


def _projection(t=4, h=5, w=6, width=16):
    torch.manual_seed(0)
    return Projection(t, h, w, width, depth=2, num_heads=2, mlp_width=32), torch.randn(2, t, h, w, width)


def test_projection_collapses_the_axis_that_the_name_lacks():
    project, volume = _projection()
    planes = project(volume)
    assert {name: tuple(plane.shape[1:3]) for name, plane in planes.items()} == {
        "HW": (5, 6),
        "WT": (4, 6),
        "HT": (4, 5),
    }


def test_a_cell_of_the_volume_reaches_one_cell_of_each_plane():
    project, volume = _projection()
    changed = volume.clone()
    changed[:, 1, 2, 3] += torch.randn(16)
    before, after = project(volume), project(changed)
    for name, (row, column) in {"HW": (2, 3), "WT": (1, 3), "HT": (1, 2)}.items():
        touched = (before[name] != after[name]).any(dim=-1)
        assert touched[:, row, column].all() and touched.sum() == 2, name


def test_projection_is_equivariant_along_kept_axes():
    project, volume = _projection()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    before, after = project(volume), project(volume[:, :, :, order])
    torch.testing.assert_close(after["HW"], before["HW"][:, :, order])
    torch.testing.assert_close(after["WT"], before["WT"][:, :, order])
    assert not torch.allclose(after["HT"], before["HT"], atol=1e-4)  # width is collapsed here, with positions


def test_the_learned_token_is_what_is_read():
    collapse = AxisCollapse(5, 16, depth=2, num_heads=2, mlp_width=32)
    for layer in collapse.layers:  # with all updates off, only the token and its position are left
        for linear in (layer.attention.to_output, layer.mlp[2]):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    pooled = collapse(torch.randn(3, 5, 16))
    assert torch.equal(pooled, (collapse.token + collapse.positions[-1]).expand(3, 16))


def test_computing_the_token_alone_in_the_last_layer_changes_nothing():
    collapse = AxisCollapse(5, 16, depth=3, num_heads=2, mlp_width=32)
    x = torch.randn(4, 5, 16)
    tokens = torch.cat([x, collapse.token.expand(4, 1, 16)], dim=1) + collapse.positions
    for layer in collapse.layers:
        tokens = layer(tokens, 6)
    torch.testing.assert_close(collapse(x), tokens[:, -1])


def test_broadcast_adds_planes_along_their_missing_axes():
    t, h, w = 2, 3, 4
    hw, wt, ht = torch.randn(1, h, w, 5), torch.randn(1, t, w, 5), torch.randn(1, t, h, 5)
    volume = broadcast_planes({"HW": hw, "WT": wt, "HT": ht})
    assert volume.shape == (1, t, h, w, 5)
    for i, j, k in [(0, 0, 0), (1, 2, 3), (0, 2, 1)]:
        torch.testing.assert_close(volume[0, i, j, k], hw[0, j, k] + wt[0, i, k] + ht[0, i, j])


def _planes(t, n):
    return {name: torch.randn(2, 4, t if "T" in name else n, n) for name in PLANE_NAMES}


def test_cube_stack_is_a_mere_stack():
    planes = _planes(16, 16)
    stack = stack_planes(planes, 16)
    assert stack.shape == (2, 4, 6, 16, 16)
    assert all(torch.equal(stack[:, :, index], planes[name]) for index, name in enumerate(PLANE_NAMES))
    assert all(torch.equal(plane, planes[name]) for name, plane in unstack_planes(stack, 16).items())


@pytest.mark.parametrize(("t", "n"), [(16, 32), (12, 16), (15, 16), (4, 32), (2, 8)])
def test_unstack_inverts_stack_where_time_is_resized(t, n):
    planes = _planes(t, n)
    stack = stack_planes(planes, n)
    assert stack.shape == (2, 4, 6, n, n)
    for name, plane in unstack_planes(stack, t).items():
        torch.testing.assert_close(plane, planes[name], atol=1e-6, rtol=1e-6)


def test_time_keeps_its_place_in_the_stack():
    planes = _planes(8, 16)
    planes["a_WT"] = torch.linspace(0, 1, 8)[None, None, :, None].expand(2, 4, 8, 16)
    rows = stack_planes(planes, 16)[0, 0, PLANE_NAMES.index("a_WT")]
    assert torch.all(rows[:, 0].diff() >= 0) and torch.equal(rows, rows[:, :1].expand(16, 16))


def test_planes_of_unequal_channels_have_zeros_behind_their_own():
    channels = (5, 2, 2, 1, 3, 4)
    planes = {name: torch.randn(2, own, 8, 8) for name, own in zip(PLANE_NAMES, channels, strict=True)}
    stack = stack_planes(planes, 8)
    assert stack.shape == (2, 5, 6, 8, 8)
    for index, own in enumerate(channels):
        assert not stack[:, own:, index].any()
    assert all(torch.equal(plane, planes[name]) for name, plane in unstack_planes(stack, 8, channels).items())


def test_a_mask_lies_along_time_and_is_a_share_in_the_plane_without_time():
    known = torch.tensor([[[1, 0, 0, 0], [1, 1, 1, 0]]]).bool()
    mask = stack_mask(known, 4)
    assert mask.shape == (1, 1, 6, 4, 4)
    by_name = dict(zip(PLANE_NAMES, mask[0, 0], strict=True))
    assert (by_name["v_HW"] == 0.25).all() and (by_name["a_HW"] == 0.75).all()
    for name, row in (("v_WT", known[0, 0]), ("v_HT", known[0, 0]), ("a_WT", known[0, 1])):
        assert torch.equal(by_name[name], row.float()[:, None].expand(4, 4))
    resized = stack_mask(known, 8)[0, 0, PLANE_NAMES.index("v_WT"), :, 0]
    assert resized[0] == 1 and (resized.diff() <= 0).all() and resized[-1] == 0


def test_nothing_of_a_modality_known_is_zeros_and_the_rest_stays():
    planes = torch.randn(2, 3, 6, 4, 4)
    known = torch.tensor([[[1, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]).bool()
    condition = masked_condition(planes, known)
    assert condition.shape == (2, 4, 6, 4, 4)
    assert torch.equal(condition[0, :3, :3], planes[0, :, :3]) and not condition[0, :, 3:].any()
    assert not condition[1].any()
    assert torch.equal(condition[:, 3:], stack_mask(known, 4))
