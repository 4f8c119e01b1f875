"""A new model's first weights from a trained model, whose clips, labels or vectors may differ.

Weights that belong to rows, columns or frames are resized (`proav/models/sampled.py`). Labels keep their
weights by name. A new label starts as the null label. A new vector changes nothing at first, nor do the
first sequences of vectors. All other settings of a model must be the trained one's. Not here: the fit of the
linear planes of a new MDSA (`fitting.py`), resuming (`resume.py`).
"""

import math

import torch
from torch import Tensor

from proav.config import Config
from proav.config.changes import setting_values, settings_that_change
from proav.errors import CheckpointError
from proav.geometry import ClipGeometry, LatentGeometry
from proav.models.mdsa import MDSA
from proav.models.sampled import resized_weights
from proav.models.stdit import STDiT
from proav.models.stdit.embeddings import MAP_PREFIX
from proav.runs.checkpoint import Checkpoint, load_checkpoint
from proav.text import one_form

MAY_DIFFER = (
    "seed", "clip.", "mel.", "mdsa.plane_size", "mdsa.linear_planes.fit_clips",
    "mdsa.group_cross.num_groups", "mdsa.bi_block.block_size",
    "stdit.labels", "stdit.vectors", "stdit.position_spacing",
    "diffusion.time_sampling", "diffusion.time_shift",
)  # fmt: skip
"""Settings, or beginnings of their names, that may differ from those of the trained model."""
LABEL_TABLE = "conditioning.label.weight"
OF_VECTORS = ("conditioning.vectors.", "context.")
"""Beginnings of the names of the weights that read given vectors. Cross-attention belongs to them, too."""


def open_start(config: Config, stage: str) -> Checkpoint | None:
    """The checkpoint that a stage's new model starts from, `<stage>.init_from`; None if there is none.

    Its files are verified when they are read.

    stage: mdsa or stdit.
    Raises CheckpointError if it is missing, or if a model of this configuration cannot start from it; the
    message names the settings.
    """
    path = getattr(config, stage).init_from
    if path is None:
        return None
    checkpoint = load_checkpoint(path, kind=None if stage == "mdsa" else "stdit", verify=False)
    name = f"{stage}.init_from={path}"
    ours, theirs = setting_values(config), setting_values(checkpoint.config)
    fixed = [key for key in settings_that_change(stage) if not key.startswith(MAY_DIFFER)]
    differing = [key for key in fixed if ours[key] != theirs[key]]
    if differing:
        then, now = (", ".join(f"{key}={values[key]}" for key in differing[:4]) for values in (theirs, ours))
        raise CheckpointError(
            f"{name} was trained with {then}; this run has {now}. Only clips, mel images, mdsa.plane_size, "
            "labels and vectors may differ from those of the trained model; write its other values"
        )
    if stage == "stdit":
        _check_tokens(name, config, checkpoint.config)
        _check_vectors(name, config, checkpoint.config)
        _check_positions(name, config, checkpoint.config)
    return checkpoint


def start_mdsa(model: MDSA, checkpoint: Checkpoint) -> str:
    """Gives a new MDSA the weights of a trained one, resized to its clips; returns a line about it.

    checkpoint: of `open_start`.
    """
    weights = checkpoint.weights("ema" if checkpoint.kind == "mdsa" else "mdsa")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        theirs = MDSA(checkpoint.config)
    found, changed = resized_weights(weights, theirs, model)
    model.load_state_dict(found)
    resized = f", {len(changed)} of them resized to this run's clips" if changed else ""
    return f"{_whence(checkpoint)}: {len(found)} tensors{resized}"


def start_stdit(model: STDiT, checkpoint: Checkpoint, labels: tuple[str, ...]) -> str:
    """Gives a new ST-DiT the weights of a trained one; returns a line, also about labels and vectors.

    checkpoint: of `open_start`.
    labels: of the new model, in the order of its table.
    """
    weights, own = checkpoint.weights("ema"), model.state_dict()
    weights[LABEL_TABLE] = _table_of(labels, weights[LABEL_TABLE], checkpoint.labels)
    fresh, left = own.keys() - weights.keys(), weights.keys() - own.keys()
    strange = [name for name in fresh | left if not (name.startswith(OF_VECTORS) or ".cross." in name)]
    assert not strange, f"tensors that only one of the two models has: {sorted(strange)}"
    model.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
    known, wanted = ({one_form(label) for label in some} for some in (checkpoint.labels, labels))
    told = {
        "new labels": [label for label in labels if one_form(label) not in known],
        "labels left behind": [label for label in checkpoint.labels if one_form(label) not in wanted],
        "new vectors": _names_of_vectors(fresh),
        "vectors left behind": _names_of_vectors(left),
    }
    said = "".join(f"; {what}: {', '.join(names)}" for what, names in told.items() if names)
    return f"{_whence(checkpoint)}: {len(own.keys() & weights.keys())} tensors{said}"


def kept_spacing(ours: Config, theirs: Config) -> tuple[float, float]:
    """The `stdit.position_spacing` with which places of the picture and seconds keep their coordinates.

        s' = s n / n' in space,   s' = s (d' / n') / (d / n) in time

    for clips of d seconds on n tokens a side. The prime marks ours.
    """
    before, after = (max(LatentGeometry.from_config(config).token_sides) for config in (theirs, ours))
    earlier, now = (ClipGeometry.from_config(config).seconds for config in (theirs, ours))
    space, time = theirs.stdit.position_spacing
    return space * before / after, time * (now / after) / (earlier / before)


def _check_tokens(name: str, ours: Config, theirs: Config) -> None:
    """Raises CheckpointError if the planes' channels or the cells of a token differ."""
    for what in ("channels", "token_patches"):
        now, then = (list(getattr(LatentGeometry.from_config(config), what)) for config in (ours, theirs))
        if now != then:
            raise CheckpointError(
                f"{name} has planes with {what.replace('_', ' ')} {then}, this run {now}; the maps between "
                "planes and tokens do not fit. Write its mdsa.latent_channels, mdsa.plane_channels and "
                "stdit.patch_size; a mdsa.plane_size that is a multiple of its own keeps the patches"
            )


def _check_vectors(name: str, ours: Config, theirs: Config) -> None:
    """Raises CheckpointError if vectors of one name have another width, or are no longer one or several."""
    for key, shape in ours.stdit.vector_shapes.items():
        before = theirs.stdit.vector_shapes.get(key, shape)
        if (len(before), before[-1]) != (len(shape), shape[-1]):
            raise CheckpointError(
                f"{name} takes {key} as {list(before)}, this run as {list(shape)}; write its value in "
                "stdit.vectors, or give the new vectors another name"
            )


def _check_positions(name: str, ours: Config, theirs: Config) -> None:
    """Raises CheckpointError if a place or a second would have other coordinates than in training."""
    given, kept = ours.stdit.position_spacing, kept_spacing(ours, theirs)
    if not all(map(math.isclose, given, kept)):
        given, kept = (",".join(f"{number:.10g}" for number in spacing) for spacing in (given, kept))
        raise CheckpointError(
            f"{name}: with stdit.position_spacing=[{given}] the places and times of this run's clips would "
            f"have other coordinates than those it was trained with; write stdit.position_spacing=[{kept}]"
        )


def _table_of(labels: tuple[str, ...], table: Tensor, their_labels: tuple[str, ...]) -> Tensor:
    """Rows of the label table in the order of `labels`, then the null label's, which stands for new ones."""
    rows = {one_form(label): index for index, label in enumerate(their_labels)}
    null = len(table) - 1
    return table[[*(rows.get(one_form(label), null) for label in labels), null]]


def _names_of_vectors(weights: set[str]) -> list[str]:
    """Names of the vectors that these weights read."""
    return sorted(
        {name.split(".")[2].removeprefix(MAP_PREFIX) for name in weights if name.startswith(OF_VECTORS)}
    )


def _whence(checkpoint: Checkpoint) -> str:
    return f"weights from {checkpoint.path} (hash {checkpoint.hash[:12]}, {checkpoint.clips:,} clips)"
