"""The costs that models state, compared with the costs of the models in use.

FLOPs are compared with torch's counter, memory with what autograd keeps, parameters with models that have
weights. Large models are built on the meta device and run on fake tensors, which have shapes but no values.
"""

import contextlib
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from proav.config import Config
from proav.config.reading import config_from_dict, config_to_dict, load_config
from proav.costs import Size, costs, format_costs, memory_estimate, model_sizes
from proav.diffusion.conditions import Conditions
from proav.geometry import ClipGeometry, LatentGeometry, stream_geometries
from proav.models.discriminators import AudioDiscriminator, VideoDiscriminators
from proav.models.kept import mdsa_kept, stdit_kept
from proav.models.layers import hidden_matrices
from proav.models.mdsa import MDSA
from proav.models.stdit import STDiT

TINY = {
    "clip": {"num_frames": 4, "height": 32, "width": 32, "fps": 8, "sample_rate": 8000},
    "mel": {"num_bins": 16, "hop": 125, "n_fft": 256, "max_hz": 4000},
    "mdsa": {
        "plane_size": 8,
        "latent_channels": 3,
        "width": 48,
        "encoder_depth": 1,
        "decoder_depth": 2,
        "num_heads": 3,
        "head_width": 8,
        "mlp_ratio": 2,
        "collapse_depth": 2,
        "collapse_heads": 2,
        "collapse_mlp_width": 40,
        "multi_scale": {"scales": [1, 2], "share_scales": True, "repeats": 2, "num_heads": 4},
        "spatial": {"num_heads": 2, "repeats": 2},
        "group_cross": {"num_groups": 2, "num_heads": 4},
        "bi_block": {"block_size": 2, "apply_to": "all", "num_heads": 4},
    },
    "stdit": {"size": "custom", "depth": 2, "width": 40, "num_heads": 4, "mlp_ratio": 3, "attention": "full"},
}
SWITCHED_OFF = {name: {"enabled": False} for name in ("multi_scale", "spatial", "group_cross", "bi_block")}
BARE = TINY | {
    "mdsa": TINY["mdsa"] | SWITCHED_OFF,
    "stdit": TINY["stdit"] | {"patch_size": 1, "attention": "divided"},
}


def tiny_with(**mdsa) -> dict:
    return TINY | {"mdsa": TINY["mdsa"] | mdsa}


NO_PATH = {"linear_planes": {"enabled": False}}
NO_REFINER = {"refiner": {"enabled": False}}
CASES = {
    "defaults": {},
    "tiny": TINY,
    "bare": BARE,
    "blocks": tiny_with(linear_planes={"overlap": False}, refiner={"levels": 1, "patch": 1}),
    "network alone": tiny_with(**NO_PATH, **NO_REFINER),
    "unequal planes": tiny_with(plane_channels={"video": (7, 2, 3), "audio": (1, 5, 4)}),
    "switched cells": tiny_with(
        linear_planes={"bases": {"video": 3, "audio": 2}, "switched_channels": 3},
        plane_channels={"video": (5, 2, 2), "audio": (2, 2, 6)},
    ),
    "vectors": TINY | {"stdit": TINY["stdit"] | {"vectors": {"caption": 7, "words": [5, 6], "face": [2, 3]}}},
    "tiled": tiny_with(audio_input="tiled", audio_channels=3, refiner={"width": 5}),
    "pvdm": {
        "mdsa": {
            "plane_size": 32,
            "latent_channels": 4,
            "audio_input": "tiled",
            "bi_block": {"block_size": 8, "global_tokens": False},
        }
    },
    "xl": {
        "mdsa": {"width": 192, "audio_input": "tiled", "audio_channels": 3},
        "stdit": {"size": "XL", "attention": "full"},
    },
}
SHALLOW = {"encoder_depth": 1, "decoder_depth": 1, "collapse_depth": 1}
"""FLOPs are linear in depth and fake tensors are slow, so only the defaults are counted at full depth."""
REAL_FLOPS = 5e10
"""Models of at most so many FLOPs really run, which is faster than fake tensors."""
LANDSCAPE = Path(__file__).parents[1] / "configs/landscape.yaml"
SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
CONFIGS = [pytest.param(settings, id=name) for name, settings in CASES.items()] + [
    pytest.param(path, id=path.name) for path in SHIPPED
]
NUM_LABELS = 5


def read(case: dict | Path, *, shallow: bool = False) -> Config:
    config = load_config(str(case)) if isinstance(case, Path) else config_from_dict(case)
    if not shallow:
        return config
    settings, (_, width, heads) = config_to_dict(config), config.stdit.shape
    one_block = {"size": "custom", "depth": 1, "width": width, "num_heads": heads}
    return config_from_dict(
        settings | {"mdsa": settings["mdsa"] | SHALLOW, "stdit": settings["stdit"] | one_block}
    )


def on_meta(make) -> torch.nn.Module:
    with torch.device("meta"):
        return make()


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def counted_flops(call, *, has_attention: bool = True) -> int:
    """FLOPs by torch's counter; here it learns the formula of the CPU's attention kernel."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formula = lambda query, key, value, *rest, out_shape=None, **named: sdpa_flop_count(query, key, value)
    with FlopCounterMode(display=False, custom_mapping={kernel: formula}) as counter:
        call()
    assert (str(kernel) in map(str, counter.get_flop_counts()["Global"])) == has_attention
    return counter.get_total_flops()


def clip_inputs(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, *stream_geometries(config)["video"].input_shape), torch.zeros(
        1, *ClipGeometry.from_config(config).mel_shape
    )


def stdit_inputs(config: Config) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    stack = torch.zeros(1, *LatentGeometry.from_config(config).stack_shape)
    vectors = {name: torch.zeros(1, *shape) for name, shape in config.stdit.vector_shapes.items()}
    return stack, torch.zeros(1, 2), Conditions(torch.zeros(1, dtype=torch.long), vectors=vectors)


def test_parameters_are_those_of_models_with_weights():
    config = read(TINY)
    bill = costs(config, NUM_LABELS)
    stdit, mdsa = STDiT(config, NUM_LABELS), MDSA(config)
    judges = [VideoDiscriminators(config), AudioDiscriminator(config)]
    assert bill.stdit_parameters == sum(len(values.flatten()) for values in stdit.state_dict().values())
    assert bill.mdsa_parameters == num_parameters(mdsa)
    assert bill.discriminators_parameters == sum(map(num_parameters, judges))
    hidden = sum(stdit.state_dict()[name].numel() for name in hidden_matrices(stdit))
    assert model_sizes(config)["stdit"].hidden == hidden
    width, ratio, depth = 40, 3, 2
    assert hidden == depth * width**2 * (4 + 2 * ratio)


def test_asking_for_costs_moves_no_random_numbers():
    before = torch.get_rng_state()
    costs(read(tiny_with(width=72)))
    assert torch.equal(torch.get_rng_state(), before)


def test_models_are_built_once_for_settings_that_shape_them():
    config, words = config_to_dict(read(TINY)), {"generate": {"steps": 3}, "job": {"stop_seconds": 9}}
    assert model_sizes(config_from_dict(config | words)) is model_sizes(config_from_dict(config))
    wider = config | {"stdit": config["stdit"] | {"width": 48}}
    assert model_sizes(config_from_dict(wider)) != model_sizes(config_from_dict(config))
    assert model_sizes(config_from_dict(config), 3) != model_sizes(config_from_dict(config))


@pytest.mark.parametrize("case", CONFIGS)
def test_flops_equal_the_counter(case):
    config = read(case)
    small = costs(config).mdsa_train_flops + costs(config).stdit_train_flops < REAL_FLOPS
    config = read(case, shallow=not small and case != CASES["defaults"])
    stdit, mdsa = on_meta(lambda: STDiT(config, NUM_LABELS)), on_meta(lambda: MDSA(config))
    parts = mdsa.flops()
    planes = {}
    with contextlib.nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        stdit, mdsa = stdit.to_empty(device="cpu"), mdsa.to_empty(device="cpu")
        assert counted_flops(lambda: stdit(*stdit_inputs(config))) == stdit.flops()
        assert counted_flops(lambda: planes.update(mdsa.encode(*clip_inputs(config)))) == parts["encode"]
        assert counted_flops(lambda: mdsa.encode_lone(*clip_inputs(config))) == parts["encode_lone"]
        assert counted_flops(lambda: mdsa.decode(planes)) == parts["decode"]


@pytest.mark.parametrize("case", [{}, TINY], ids=["defaults", "tiny"])
def test_flops_of_a_judgement_equal_the_counter(case):
    config = read(case)
    with torch.device("meta"), torch.no_grad():
        video, audio = VideoDiscriminators(config), AudioDiscriminator(config)
        clip, mel = clip_inputs(config)
        counted = counted_flops(
            lambda: (video(clip, torch.zeros(1, dtype=torch.long)), audio(mel)), has_attention=False
        )
    assert counted == video.flops() + audio.flops()


def kept_bytes(model: torch.nn.Module, call, precision: str) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass.

    The weights do not count, nor do their 2-byte copies under autocast.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    autocast = contextlib.nullcontext() if precision == "fp32" else torch.autocast("cpu", torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        call(model)
    copies = 0 if precision == "fp32" else 2 * num_parameters(model)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values()) - copies


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {
            "stdit": {"size": "custom", "depth": 4, "width": 768, "num_heads": 12},
            "mdsa": {"encoder_depth": 2, "decoder_depth": 3, "collapse_depth": 2},
        },
        {
            "stdit": {
                "size": "custom",
                "depth": 4,
                "width": 384,
                "num_heads": 6,
                "attention": "full",
                "mlp_ratio": 2,
                "vectors": {"words": [77, 64]},
            },
            "mdsa": SHALLOW | {"width": 256, "decoder_depth": 3, "mlp_ratio": 2, "refiner": {"width": 64}},
        },
        {
            "stdit": {"size": "custom", "depth": 4, "width": 768, "num_heads": 12},
            "mdsa": SHALLOW | {"plane_channels": {"video": (46, 1, 1), "audio": (1, 1, 46)}},
        },
    ],
)
def test_activations_are_near_what_autograd_keeps(settings, precision):
    config = config_from_dict(settings)
    models = {stdit_kept: on_meta(lambda: STDiT(config, 0)), mdsa_kept: on_meta(lambda: MDSA(config))}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for estimate, model in models.items():
            model = model.to_empty(device="cpu")
            inputs = stdit_inputs(config) if estimate is stdit_kept else clip_inputs(config)
            measured = kept_bytes(model, lambda module: module(*inputs), precision)
            assert estimate(config).num_bytes(precision, recompute=False) == pytest.approx(measured, rel=0.1)


def test_recomputation_keeps_a_small_part():
    config = config_from_dict({})
    for kept in (stdit_kept(config), mdsa_kept(config)):
        assert kept.num_bytes("bf16", recompute=True) < 0.2 * kept.num_bytes("bf16", recompute=False)


@pytest.mark.parametrize(
    "stage, bytes_per_parameter",
    [(0, 4 + 4 + 8 + 4), (1, 4 + 4 + 12 / 4 + 4), (2, 4 + 4 / 4 + 12 / 4 + 4), (3, (4 + 4 + 12 + 4) / 4)],
)
def test_zero_stages_share_what_they_say(stage, bytes_per_parameter):
    config = config_from_dict(
        {"stdit": {"train": {"zero_stage": stage, "num_workers": 4, "precision": "fp32"}}}
    )
    memory = memory_estimate(Size(1_000_000), stdit_kept(config), config.stdit.train)
    assert memory.total - memory.activations == bytes_per_parameter * 1_000_000
    assert memory.activations == 16 * stdit_kept(config).num_bytes("fp32", recompute=False)


def test_muon_keeps_one_moment_of_hidden_matrices():
    config = config_from_dict({"stdit": {"train": {"engine": "torch", "optimizer": "muon"}}})
    memory = memory_estimate(Size(1_000_000, hidden=900_000), stdit_kept(config), config.stdit.train)
    assert memory.moments == 4 * 900_000 + 8 * 100_000


def test_a_sample_counts_guidance_and_decoding():
    settings = {"generate": {"steps": 7, "guidance_scale": 2.0}}
    bill = costs(config_from_dict(settings))
    assert (
        bill.sample_flops == 14 * bill.stdit_forward_flops + bill.mdsa_decode_flops
        and bill.sample_evaluations == 14
    )
    settings["generate"]["guidance_scale"] = 1.0
    assert costs(config_from_dict(settings)).sample_evaluations == 7


@pytest.mark.parametrize(
    ("generate", "stdit", "evaluations"),
    [
        ({"guidance_interval": [0.35, 0.65]}, {}, 10 + 3),  # at t = 0.6, 0.5 and 0.4
        ({"guidance_interval": [0.35, 0.55], "solver": "heun"}, {}, 19 + 4),
        ({"audio_guidance_scale": 1.0}, {}, 20),
        ({}, {"labels": False}, 10),  # guidance has nothing to act on
        ({}, {"labels": False, "vectors": {"caption": 8}}, 20),
    ],
)
def test_guidance_is_counted_where_it_acts(generate, stdit, evaluations):
    own = {"steps": 10, "guidance_scale": 2.0} | generate
    bill = costs(config_from_dict({"generate": own, "stdit": stdit}))
    assert bill.sample_evaluations == evaluations


def test_a_flow_map_costs_its_target_in_training_and_few_evaluations_a_sample():
    """Its target takes a pass of the teacher, two with guidance, and one of the student."""
    for guidance, passes in ((1.0, 3 + 2), (2.0, 3 + 3)):
        bill = costs(config_from_dict({"distill": {"guidance_scale": guidance}}))
        assert bill.distill_train_flops == passes * bill.stdit_forward_flops
    assert bill.distill_sample_flops == 4 * bill.stdit_forward_flops + bill.mdsa_decode_flops
    assert bill.distill_memory.total == bill.stdit_memory.total + 4 * bill.stdit_parameters
    sample = {"diffusion": {"objective": "flow_map"}}
    assert costs(config_from_dict(sample)).sample_evaluations == 4


@pytest.mark.parametrize("settings", [{}, LANDSCAPE], ids=["defaults", "landscape"])
def test_a_sample_stays_within_its_budget(settings):
    """30 guided steps of ST-DiT B and one decoding: a hundredth of MM-Diffusion with its super-resolution."""
    guided = {"generate": {"steps": 30, "guidance_scale": 2.0}}
    assert costs(config_from_dict(config_to_dict(read(settings)) | guided)).sample_flops <= 6e12


def test_linear_planes_cost_less_than_a_hundredth_of_mdsa():
    settings = config_to_dict(read(LANDSCAPE))
    bare = config_from_dict(settings | {"mdsa": settings["mdsa"] | NO_PATH})
    without = model_sizes(bare)["mdsa"].flops
    for part, whole in model_sizes(read(LANDSCAPE))["mdsa"].flops.items():
        assert without[part] < whole < without[part] / 0.99


def test_lines_for_people_name_all_that_is_asked():
    text = format_costs(costs(config_from_dict({}), NUM_LABELS))
    for word in ("parameters", "FLOPs/clip", "sample", "train", "memory", "ZeRO 1", "5 labels"):
        assert word in text
    assert "WIDE TOKENS" not in text
    small = config_from_dict({"stdit": {"size": "custom", "width": 32, "num_heads": 2, "depth": 1}})
    assert "\nWIDE TOKENS: a token holds 64 numbers" in format_costs(costs(small))
