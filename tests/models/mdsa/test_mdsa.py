import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from proav.config import Config
from proav.geometry import PLANE_NAMES, LatentGeometry
from proav.models.mdsa import MDSA, Exchange
from proav.models.mdsa.streams import tile_mel, untile_mel

FUSION = ("multi_scale", "spatial", "group_cross", "bi_block")
ALL_OFF = {name: {"enabled": False} for name in FUSION}
ALONE = {"linear_planes": {"enabled": False}, "refiner": {"enabled": False}}
"""The network alone, without linear planes and refiners."""
SWITCHED = {
    "linear_planes": {"bases": {"video": 3, "audio": 2}, "switched_channels": 3},
    "plane_channels": {"video": (6, 2, 2), "audio": (1, 2, 5)},
}


def _equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("parts", [{}, ALONE], ids=["whole", "network alone"])
def test_planes_and_clips_have_their_shapes_and_ranges(make_mdsa, make_config, open_gates, clips, parts):
    model = make_mdsa(plane_channels={"video": (5, 3, 2)}, **parts)
    if not parts:
        model = open_gates(model)
        for weight in model.parameters():
            weight.data *= 2  # no part of the model bounds its values by itself
    planes = model.encode(*clips)
    shapes, channels = LatentGeometry.from_config(make_config()).plane_shapes, (5, 3, 2, 4, 4, 4)
    assert tuple(planes) == PLANE_NAMES
    for (name, plane), depth in zip(planes.items(), channels, strict=True):
        assert plane.shape == (3, depth, *shapes[name[2:]]) and plane.dtype == torch.float32
        assert (plane.abs().max() < 1) == (parts == ALONE)
    video, mel = model.decode(planes)
    assert video.shape == clips[0].shape and mel.shape == clips[1].shape
    assert max(video.abs().max(), mel.abs().max()) <= 1
    # The losses compute with values that are not clipped
    assert (max(values.abs().max() for values in model(*clips)) <= 1) == (parts == ALONE)


@pytest.mark.parametrize("parts", [{}, ALONE], ids=["whole", "network alone"])
def test_untrained_model_is_two_independent_autoencoders_bit_for_bit(make_mdsa, clips, parts):
    fused, plain = make_mdsa(seed=3, **parts), make_mdsa(seed=3, **parts, **ALL_OFF)
    shared = {name: weight for name, weight in fused.state_dict().items() if name in plain.state_dict()}
    assert _equal(plain.state_dict(), shared)
    for model in (fused, plain):
        model.fit_linear_planes([clips])
    assert all(torch.equal(a, b) for a, b in zip(fused(*clips), plain(*clips)))
    alone = plain.decode(plain.encode(clips[0], None))[0], plain.decode(plain.encode(None, clips[1]))[1]
    assert all(torch.equal(a.clamp(-1, 1), b) for a, b in zip(fused(*clips), alone))


@pytest.mark.parametrize("name", FUSION)
def test_switching_one_module_off_leaves_all_other_weights(make_mdsa, name):
    full, part = make_mdsa(seed=3).state_dict(), make_mdsa(seed=3, **{name: {"enabled": False}}).state_dict()
    assert set(full) - set(part) == {key for key in full if key.startswith(name + ".")}
    assert all(torch.equal(weight, full[key]) for key, weight in part.items())


@pytest.mark.parametrize(
    ("audio_input", "parts"),
    [("native", {}), ("tiled", {}), ("native", SWITCHED)],
    ids=["native", "tiled", "switched"],
)
def test_untrained_model_is_the_linear_code_bit_for_bit(make_mdsa, clips, audio_input, parts):
    model = make_mdsa(audio_input=audio_input, **parts)
    model.fit_linear_planes([clips])
    images = {"video": clips[0], "audio": clips[1][:, None]}
    if audio_input == "tiled":
        images["audio"] = tile_mel(clips[1], model.geometry["audio"])
    codes = {name: model.linear[name].analyse(values) for name, values in images.items()}
    made = {name: model.linear[name].synthesize(planes) for name, planes in codes.items()}
    expected = {f"{name[0]}_{plane}": code for name in codes for plane, code in codes[name].items()}
    assert _equal(model.encode(*clips), expected) and _equal(model.encode_lone(*clips), expected)
    mel = untile_mel(made["audio"], 16, 8) if audio_input == "tiled" else made["audio"][:, 0]
    video, bounded = made["video"], (made["video"].clamp(-1, 1), mel.clamp(-1, 1))
    assert all(torch.equal(*pair) for pair in zip(model(*clips), (video, mel), strict=True))
    assert all(torch.equal(*pair) for pair in zip(model.decode(expected), bounded, strict=True))
    for index, letter in enumerate("va"):
        lone = {name: plane for name, plane in expected.items() if name.startswith(letter)}
        assert torch.equal(model.decode(lone)[index], bounded[index])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _equal(model.encode(*clips), expected) and torch.equal(model(*clips)[0], video)


def test_the_linear_path_alone_is_the_untrained_model(make_mdsa, open_gates, clips):
    model = make_mdsa()
    model.fit_linear_planes([clips])
    expected = model(*clips)
    trained = open_gates(model)
    assert all(torch.equal(*pair) for pair in zip(trained(*clips, linear_alone=True), expected, strict=True))
    assert not torch.allclose(trained(*clips)[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("parts", [{}, SWITCHED], ids=["planes", "switched"])
def test_the_fit_does_not_depend_on_how_clips_come(make_mdsa, clips, parts):
    whole, cut = make_mdsa(**parts), make_mdsa(**parts)
    whole.fit_linear_planes([clips])
    cut.fit_linear_planes([(clips[0][index : index + 1], clips[1][index : index + 1]) for index in range(3)])
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], weight, atol=1e-4, rtol=1e-4)


def test_switched_off_the_linear_path_and_the_refiner_leave_nothing(make_mdsa, clips):
    model = make_mdsa(**ALONE)
    words = ("linear.video", "linear.audio", "refine")
    assert not any(word in name for name in model.state_dict() for word in words)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.fit_linear_planes([clips])
    assert _equal(before, model.state_dict())


def test_construction_leaves_the_random_stream_where_it_was_without_fusion(make_mdsa):
    make_mdsa(seed=3)
    with_fusion = torch.rand(4)
    make_mdsa(seed=3, **ALL_OFF)
    assert torch.equal(torch.rand(4), with_fusion)


def test_lone_encoding_is_joint_encoding_without_exchange(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa())
    lone = model.encode_lone(*clips)
    assert _equal(lone, model.encode(*clips, exchange=Exchange.off(3)))
    on, off = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    half = model.encode(*clips, exchange=Exchange(to_video_B=off, to_audio_B=on))
    joint = model.encode(*clips)
    assert all(
        torch.equal(half[name], (lone if name.startswith("v") else joint)[name]) for name in PLANE_NAMES
    )
    assert not torch.allclose(joint["v_WT"], lone["v_WT"], atol=1e-3)


def test_lone_decoding_is_joint_decoding_without_exchange(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa())
    planes = model.encode(*clips)
    video, mel = model.decode(planes, exchange=Exchange.off(3))
    alone_video, nothing = model.decode(
        {name: plane for name, plane in planes.items() if name.startswith("v")}
    )
    none, alone_mel = model.decode({name: plane for name, plane in planes.items() if name.startswith("a")})
    assert (
        nothing is None and none is None and torch.equal(video, alone_video) and torch.equal(mel, alone_mel)
    )
    assert not torch.allclose(model.decode(planes)[0], video, atol=1e-4)


def test_lone_planes_leak_nothing_and_joint_planes_do(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa())
    video, mel = clips
    other = video.flip(0)
    lone, joint = (
        (model.encode_lone(video, mel), model.encode_lone(other, mel)),
        (model.encode(video, mel), model.encode(other, mel)),
    )
    for name in ("a_HW", "a_WT", "a_HT"):
        assert torch.equal(lone[0][name], lone[1][name])
    assert not torch.allclose(joint[0]["a_WT"], joint[1]["a_WT"], atol=1e-3)


def test_exchange_is_per_clip(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa())
    mask = torch.tensor([True, False, True])
    mixed, joint, lone = (
        model.encode(*clips, exchange=Exchange(to_video_B=mask)),
        model.encode(*clips),
        model.encode_lone(*clips),
    )
    assert torch.equal(mixed["v_WT"], torch.where(mask[:, None, None, None], joint["v_WT"], lone["v_WT"]))
    assert torch.equal(mixed["a_WT"], joint["a_WT"])


def test_exchange_is_drawn_with_equal_shares_and_repeats():
    draw = Exchange.draw(60_000, 0.1, torch.Generator().manual_seed(0))
    again = Exchange.draw(60_000, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(draw.to_video_B, again.to_video_B) and torch.equal(draw.to_audio_B, again.to_audio_B)
    cases = [
        draw.to_video_B & ~draw.to_audio_B,
        ~draw.to_video_B & draw.to_audio_B,
        ~draw.to_video_B & ~draw.to_audio_B,
    ]
    assert all(abs(case.double().mean() - 0.1) < 0.005 for case in cases)  # four standard deviations
    never = Exchange.draw(1000, 0.0, torch.Generator())
    assert never.to_video_B.all() and never.to_audio_B.all()


@pytest.mark.parametrize("name", FUSION)
def test_repeats_are_modules_in_a_row(make_mdsa, open_gates, clips, name):
    single, double = open_gates(make_mdsa()), open_gates(make_mdsa(**{name: {"repeats": 2}}))
    count = [
        sum(weight.numel() for weight in getattr(model, name).parameters()) for model in (single, double)
    ]
    assert count[1] == 2 * count[0]
    assert not torch.allclose(single(*clips)[0], double(*clips)[0], atol=1e-4)


def test_bi_block_on_all_planes(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa(bi_block={"apply_to": "all"}))
    assert list(model.bi_block) == ["HW", "WT", "HT"] and model(*clips)[0].shape == clips[0].shape


@pytest.mark.parametrize("channels", [1, 3])
def test_tiled_audio(make_mdsa, make_config, clips, channels):
    model = make_mdsa(audio_input="tiled", audio_channels=channels)
    image = tile_mel(clips[1], model.geometry["audio"])
    assert image.shape == (3, channels, 8, 32, 32)
    assert torch.equal(image[:, 0, :, -1, 0], clips[1][:, :, 0, 0])  # the lowest band is the bottom row
    torch.testing.assert_close(untile_mel(image, 16, 8), clips[1])
    assert model(*clips)[1].shape == clips[1].shape


def _gradients(model, clips, **attributes):
    for name, value in attributes.items():
        setattr(model, name, value)
    model.zero_grad()
    video, mel = model(*clips)
    (video.square().mean() + mel.square().mean()).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_from_the_linear_code_on_every_weight_comes_to_learn(make_mdsa, clips):
    model = make_mdsa()
    model.fit_linear_planes([clips])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):  # first the last layers, which start at zero, then the gates inside the networks
        _gradients(model, clips)
        optimizer.step()
    silent = {name for name, gradient in _gradients(model, clips).items() if not gradient.any()}
    assert not silent


def test_noise_is_added_to_planes_in_units_of_their_own(make_mdsa, clips):
    model = make_mdsa()
    model.fit_linear_planes([clips])
    planes = model.encode(*clips)
    noise = {name: torch.randn_like(plane) for name, plane in planes.items()}
    sizes = {name: plane.square().mean((1, 2, 3), keepdim=True).sqrt() for name, plane in planes.items()}
    noisy = {name: plane + sizes[name] * noise[name] for name, plane in planes.items()}
    expected = [values.clamp(-1, 1) for values in model(*clips, noise=noise)]
    assert all(torch.equal(*pair) for pair in zip(expected, model.decode(noisy), strict=True))
    silent = model(*clips, noise={name: torch.zeros_like(plane) for name, plane in planes.items()})
    assert all(torch.equal(*pair) for pair in zip(silent, model(*clips), strict=True))


def test_hidden_cells_do_not_reach_the_decoder(make_mdsa, clips):
    model = make_mdsa()
    model.fit_linear_planes([clips])
    planes = model.encode(*clips)
    shown = {name: (torch.rand_like(plane[:, :1]) < 0.5).float() for name, plane in planes.items()}
    expected = model.decode({name: plane * shown[name] for name, plane in planes.items()})
    made = [values.clamp(-1, 1) for values in model(*clips, shown=shown)]
    assert all(torch.equal(*pair) for pair in zip(made, expected, strict=True))


def test_activation_checkpointing_gives_equal_gradients_and_every_weight_learns(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa())
    model.fit_linear_planes([clips])
    kept, recomputed = (
        _gradients(model, clips, activation_checkpointing=False),
        _gradients(model, clips, activation_checkpointing=True),
    )
    assert _equal(kept, recomputed)
    assert all(gradient.abs().max() > 0 for gradient in kept.values())


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bf16(make_mdsa, open_gates, clips, how):
    model = open_gates(make_mdsa())
    expected = model.decode(model.encode(*clips))[0]
    if how == "weights":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        planes = model.encode(*clips)
        video, mel = model.decode(planes)
    assert video.dtype == mel.dtype == planes["v_HW"].dtype == torch.float32
    torch.testing.assert_close(video, expected, atol=0.05, rtol=0)
    (video.mean() + mel.mean()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_weights_go_through_safetensors(make_mdsa, open_gates, clips, tmp_path):
    model = open_gates(make_mdsa(multi_scale={"share_scales": True}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # refuses tensors that share memory
    other = make_mdsa(seed=9, multi_scale={"share_scales": True})
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(model(*clips)[0], other(*clips)[0])


def test_clips_do_not_depend_on_their_batch(make_mdsa, open_gates, clips):
    model = open_gates(make_mdsa())
    together, alone = model(*clips), model(clips[0][1:2], clips[1][1:2])
    torch.testing.assert_close(together[0][1:2], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1][1:2], alone[1], atol=1e-5, rtol=1e-5)


def test_one_stream_has_the_parameters_of_its_ancestor():
    with torch.device("meta"):
        settings = ALONE | {"plane_size": 32, "latent_channels": 4, "audio_input": "tiled"}
        model = MDSA(Config(mdsa=settings | {"bi_block": {"block_size": 8}}))
    stream = [
        parts["video"] for parts in (model.encoder, model.to_latents, model.from_latents, model.decoder)
    ]
    assert (
        sum(weight.numel() for part in stream for weight in part.parameters()) == 62_064_399
    )  # PVDM's autoencoder at its released settings


def test_full_scale_costs_less_than_its_bounds():
    """Both streams of a 16 x 256 x 256 clip cost at most 0.9 TFLOP to encode, and as much to decode.

    The counter counts attention on meta tensors, but not on the CPU.
    """
    with torch.device("meta"), torch.no_grad():
        model, video, mel = MDSA(Config()), torch.empty(1, 3, 16, 256, 256), torch.empty(1, 16, 128, 16)
        with FlopCounterMode(display=False) as encode:
            planes = model.encode(video, mel)
        with FlopCounterMode(display=False) as decode:
            model.decode(planes)
    assert 0.5e12 < encode.get_total_flops() < 0.9e12
    assert 0.4e12 < decode.get_total_flops() < 0.9e12
