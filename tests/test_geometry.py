"""Derived sizes against numbers worked out by hand from the paper's scale."""

from pathlib import Path

import pytest

from bench.train import world_claim
from proav.config.reading import load_config
from proav.geometry import PLANE_NAMES, ClipGeometry, LatentGeometry, stream_geometries, wide_tokens

ROOT = Path(__file__).parents[1]


def test_landscape_sizes():
    config = load_config()
    clip, latents = ClipGeometry.from_config(config), LatentGeometry.from_config(config)
    assert (clip.seconds, clip.num_samples, clip.samples_per_frame) == (1.6, 25_600, 1_600)
    assert clip.mel_shape == (16, 128, 16) and clip.tile == (2, 16)
    assert latents.plane_shapes == {"HW": (16, 16), "WT": (16, 16), "HT": (16, 16)}
    assert latents.stack_shape == (16, 6, 16, 16) and len(PLANE_NAMES) == 6
    assert (latents.num_tokens, latents.values_per_clip) == (384, 24_576)
    assert latents.channels_per_plane("audio") == {"HW": 16, "WT": 16, "HT": 16}
    assert latents.values_per_stream("video") == 12_288


def test_audioset_sizes():
    clip = ClipGeometry.from_config(load_config(None, ["clip.fps=4", "mel.hop=125"]))
    assert (clip.seconds, clip.num_samples, clip.mel_shape, clip.tile) == (4.0, 64_000, (16, 128, 32), (2, 8))


def test_pvdm_layout():
    config = load_config(None, ["mdsa.plane_size=32", "mdsa.latent_channels=4", "mdsa.audio_input=tiled"])
    latents, streams = LatentGeometry.from_config(config), stream_geometries(config)
    assert latents.plane_shapes == {"HW": (32, 32), "WT": (16, 32), "HT": (16, 32)}
    assert latents.stack_shape == (4, 6, 32, 32)
    assert latents.values_per_clip == 2 * 8_192  # PVDM's 8,192 numbers a clip, for each modality
    assert latents.num_tokens == 1_536
    assert streams["video"].patch == (8, 8) and streams["audio"].patch == (8, 8)


def test_planes_of_fewer_frames_than_cells_hold_fewer_values():
    words = ["clip.num_frames=8", "mdsa.bi_block.block_size=4"]
    latents = LatentGeometry.from_config(load_config(None, words))
    assert latents.values_per_stream("audio") == 16 * (16 * 16 + 2 * 8 * 16)
    assert latents.values_per_clip == 2 * latents.values_per_stream("audio")


def test_patches_of_both_streams_fill_the_plane():
    for words in ([], ["clip.fps=4", "mel.hop=125"], ["mdsa.audio_input=tiled", "mdsa.audio_channels=3"]):
        for stream in stream_geometries(load_config(None, words)).values():
            assert (
                stream.patch[0] * stream.plane_size == stream.rows
                and stream.patch[1] * stream.plane_size == stream.columns
            )


def test_planes_of_few_channels_have_large_tokens():
    words = ["stdit.patch_size=1", "mdsa.plane_size=16", "mdsa.plane_channels.video=[46,12,11]"]
    latents = LatentGeometry.from_config(load_config(None, [*words, "mdsa.plane_channels.audio=[1,2,46]"]))
    assert latents.token_patches == (1, 1, 2, 4, 4, 1)  # 1, 46 / 12, 46 / 11, 46, 23 and 1 times fewer
    assert latents.num_tokens == 256 + 256 + 64 + 16 + 16 + 256
    coarse = LatentGeometry.from_config(load_config(None, ["stdit.patch_size=8", *words[1:]]))
    assert max(coarse.token_patches) == 16  # a plane of 16 cells has no larger token


def test_tokens_wider_than_the_model_are_told():
    uneven = ["mdsa.plane_channels.video=[46,1,1]", "mdsa.plane_channels.audio=[1,1,46]"]
    narrow = ["stdit.size=custom", "stdit.depth=4", "stdit.width=128", "stdit.num_heads=4"]
    assert LatentGeometry.from_config(load_config(None, uneven)).values_per_token == 46 * 2 * 2
    assert wide_tokens(load_config(None, [*uneven, *narrow])) == (
        "WIDE TOKENS: a token holds 184 numbers, and ST-DiT is 128 wide. It cannot predict 56 of their "
        "directions, so samples will be grainy; choose stdit.patch_size=1, or an ST-DiT of width 184 or "
        "more, or fewer mdsa.plane_channels in the widest plane"
    )
    assert wide_tokens(load_config(None, [*uneven, *narrow, "stdit.width=184"])) is None


@pytest.mark.parametrize(
    ("patch", "width", "way"), [(8, 128, "patch_size=1,"), (8, 192, "patch_size=2,"), (2, 32, "choose an ST")]
)
def test_the_largest_patch_that_fits_is_named_if_there_is_one(patch, width, way):
    words = ["mdsa.plane_channels.video=[46,1,1]", "stdit.size=custom", "stdit.depth=4", "stdit.num_heads=4"]
    assert way in wide_tokens(
        load_config(None, [*words, f"stdit.patch_size={patch}", f"stdit.width={width}"])
    )


def test_no_shipped_configuration_has_them():
    """Nor has any variant of a benchmark, but for two that say so in their files."""
    files = [*(ROOT / "configs").rglob("*.yaml"), ROOT / "examples" / "showcase" / "config.yaml"]
    assert len(files) > 20 and not [file for file in files if wide_tokens(load_config(str(file)))]
    wide = []
    for path in (ROOT / "bench" / "train" / "variants").glob("*.yaml"):
        spec = world_claim.read_spec(path)
        base = spec.get("base", [])
        for name, words in (spec.get("variants") or {}).items():
            config = load_config(str(ROOT / spec["config"]), [*base, *(words or [])])
            wide += [f"{path.stem}: {name}"] * bool(wide_tokens(config))
    assert sorted(wide) == ["stdit: tokens of 2 x 2 cells", "world_layouts: uneven planes"]
