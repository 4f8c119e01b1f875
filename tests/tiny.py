"""The smallest run that has every part: a configuration, and checkpoints of models with random weights."""

import torch

from proav.config import Config
from proav.config.reading import load_config
from proav.models.mdsa import MDSA
from proav.models.stdit import STDiT
from proav.runs.checkpoint import save_checkpoint

LABELS = ("rain", "speech")
TINY = [
    "name=tiny", "clip.num_frames=4", "clip.fps=5", "clip.height=32", "clip.width=32",
    "mel.num_bins=32", "mel.hop=200", "mel.griffin_lim_iterations=4",
    "data.segment_seconds=2", "data.fit=crop", "data.rows_per_shard=2", "data.validation_fraction=0.25",
    "mdsa.plane_size=4", "mdsa.latent_channels=4", "mdsa.width=16", "mdsa.encoder_depth=1",
    "mdsa.decoder_depth=1", "mdsa.num_heads=2", "mdsa.head_width=8",
    "mdsa.collapse_depth=1", "mdsa.collapse_heads=2", "mdsa.collapse_mlp_width=16",
    "mdsa.multi_scale.num_heads=2", "mdsa.spatial.num_heads=2",
    "mdsa.group_cross.num_heads=2", "mdsa.group_cross.num_groups=2",
    "mdsa.bi_block.num_heads=2", "mdsa.bi_block.block_size=2",
    "mdsa.linear_planes.fit_clips=8", "mdsa.refiner.width=4",
    "mdsa.loss.discriminator_width=4", "mdsa.loss.discriminator_layers=1",
    "stdit.size=custom", "stdit.depth=1", "stdit.width=16", "stdit.num_heads=2",
    "train.num_clips=16", "train.batch_size=4", "train.precision=fp32",
    "train.checkpoint_every_clips=8", "train.report_every_clips=4", "train.warmup_clips=4",
    "encode.stride_frames=2", "encode.batch_size=4",
    "generate.num_samples=3", "generate.steps=3", "generate.batch_size=2", "generate.guidance_scale=1.5",
    "evaluate.num_workers=1",
]  # fmt: skip


def tiny_config(*overrides: str) -> Config:
    return load_config(None, [*TINY, *overrides])


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Adds random values to all weights, also to closed gates and zero outputs, so that every path matters.

    Wide maps get smaller values. Otherwise all clips would be at full scale, which hides or enlarges every
    difference.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.1 if parameter.ndim < 2 else min(0.1, parameter[0].numel() ** -0.5)
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def save_tiny_mdsa(folder: str, config: Config, seed: int = 1) -> str:
    torch.manual_seed(0)
    weights = randomize(MDSA(config), seed).state_dict()
    return save_checkpoint(
        folder,
        kind="mdsa",
        clips=8,
        step=2,
        config=config,
        tensors={"model": weights, "ema": weights},
        labels=LABELS,
    )


def save_tiny_stdit(folder: str, config: Config) -> str:
    torch.manual_seed(0)
    mdsa, stdit = (
        randomize(MDSA(config), 1).state_dict(),
        randomize(STDiT(config, num_labels=len(LABELS)), 2).state_dict(),
    )
    shape = (6, config.mdsa.latent_channels)
    statistics = {"latent_mean": torch.zeros(shape).tolist(), "latent_std": torch.full(shape, 0.5).tolist()}
    tensors = {"model": stdit, "ema": stdit, "mdsa": mdsa}
    return save_checkpoint(
        folder, kind="stdit", clips=8, step=2, config=config, tensors=tensors, labels=LABELS, **statistics
    )
