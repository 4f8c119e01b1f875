"""A checkpoint made small for giving away: `python -m proav.export CHECKPOINT FOLDER`.

It keeps what sampling needs: the moving averages of ST-DiT and MDSA in half precision, configuration, labels
and latent statistics. Paths of the machine that trained it (folders, listings, weight files) are left out.
Training cannot go on from it. Not here: the format of checkpoints (`proav/runs/checkpoint.py`).
"""

import argparse
import sys

import torch

from proav.config import Config
from proav.config.reading import config_from_dict, config_to_dict
from proav.errors import UserError
from proav.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

PLACES_OF_DATA = ("sources", "listing", "videos", "ontology", "prepared")
"""Settings of the section data that name files and folders."""
LARGEST_HALF = torch.finfo(torch.float16).max


def export_checkpoint(checkpoint: Checkpoint, folder: str) -> str:
    """Writes a checkpoint of ST-DiT to `folder`/clips-<clips>, and `folder`/latest; returns its path.

    Weights are rounded to float16 and read as float32 again. Raises UserError if one is too large for it.
    """
    if checkpoint.kind != "stdit":
        raise UserError(
            f"{checkpoint.path} is a checkpoint of kind {checkpoint.kind}; expected one of ST-DiT"
        )
    tensors = {}
    for name in ("ema", "mdsa"):
        weights = checkpoint.weights(name)
        large = [key for key, value in weights.items() if value.abs().max() > LARGEST_HALF]
        if large:
            raise UserError(f"{checkpoint.path}: {large[0]} does not fit in half precision")
        tensors[name] = weights
    return save_checkpoint(
        folder,
        kind="stdit",
        clips=checkpoint.clips,
        step=checkpoint.step,
        config=_without_places(checkpoint.config),
        tensors=tensors,
        labels=checkpoint.labels,
        latent_mean=checkpoint.latent_mean,
        latent_std=checkpoint.latent_std,
        mdsa_hash=checkpoint.mdsa_hash,
        teacher_hash=checkpoint.teacher_hash,
        init_hash=checkpoint.init_hash,
        keep=1,
        dtype=torch.float16,
    )


def _without_places(config: Config) -> Config:
    """The configuration, in which every setting that names a file or folder has its default."""
    settings = config_to_dict(config)
    settings["run_dir"] = None
    for key in PLACES_OF_DATA:
        del settings["data"][key]
    settings["mdsa"]["loss"]["perceptual_weights"] = None
    settings["mdsa"]["init_from"] = settings["stdit"]["init_from"] = None
    del settings["evaluate"], settings["generate"]["checkpoint"], settings["distill"]["teacher"]
    return config_from_dict(settings)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of an ST-DiT checkpoint, or the `latest` file beside it")
    parser.add_argument("folder", help="where to write; older exports there are removed, other files stay")
    arguments = parser.parse_args(words)
    try:
        path = export_checkpoint(load_checkpoint(arguments.checkpoint, kind="stdit"), arguments.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(entry["bytes"] for entry in load_checkpoint(path, kind="stdit").files.values())
    print(f"{path}: {size / 1e6:.1f} MB in half precision")
    return 0


if __name__ == "__main__":
    sys.exit(main())
