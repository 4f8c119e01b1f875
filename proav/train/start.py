"""A new model's first weights from a trained model, whose clips, labels or vectors may differ.

Weights that belong to rows, columns or frames are resized (`proav/models/sampled.py`). Labels keep their
weights by name. A new label starts as the null label. A new vector changes nothing at first, nor do the
first sequences of vectors. All other settings of a model must be the trained one's. Not here: the fit of the
linear planes of a new MDSA (`fitting.py`), resuming (`resume.py`).
"""

import math
from dataclasses import replace

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
from proav.runs.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from proav.runs.layout import RunFolder
from proav.text import one_form
from proav.train.fitting import FirstWeights

MAY_DIFFER = (
    "seed", "clip.num_frames", "clip.fps", "clip.height", "clip.width", "mel.num_bins", "mel.hop",
    "mdsa.plane_size", "mdsa.linear_planes.fit_clips", "mdsa.group_cross.num_groups",
    "mdsa.bi_block.block_size", "stdit.labels", "stdit.vectors", "stdit.position_spacing",
    "diffusion.time_sampling", "diffusion.time_shift",
)  # fmt: skip
"""Settings that may differ from those of the trained model."""
LABEL_TABLE = "conditioning.label.weight"
OF_VECTORS = ("conditioning.vectors.", "context.")
"""Beginnings of the names of the weights that read given vectors. Cross-attention belongs to them, too."""


def check_starts(config: Config, *stages: str) -> None:
    """Raises CheckpointError, as `open_start`, if a stage that has not begun cannot start as it says.

    stages: some of mdsa and stdit.
    """
    for stage in stages:
        if not list_checkpoints(RunFolder(config).stage(stage).checkpoints):
            open_start(config, stage)


def check_begun(checkpoint: Checkpoint, config: Config, stage: str) -> None:
    """Raises CheckpointError if a stage that is resumed began otherwise than the configuration says.

    checkpoint: the stage's own, to resume from.
    """
    then, now = checkpoint.init_hash is not None, bool(getattr(config, stage).init_from)
    if then and not now:
        raise CheckpointError(
            f"{checkpoint.path} began with the weights of another model (hash {checkpoint.init_hash[:12]}), "
            f"this run says nothing of it; write {stage}.init_from=PATH. The path is not read again"
        )
    if now and not then:
        raise CheckpointError(
            f"{stage}.init_from={getattr(config, stage).init_from} has no effect: {checkpoint.path} began "
            "without it. Leave it out to continue, or choose another run_dir=DIR to start anew"
        )


def open_start(config: Config, stage: str) -> Checkpoint | None:
    """The checkpoint that a stage's new model starts from, `<stage>.init_from`; None if there is none.

    Its files are verified when they are read.

    stage: mdsa or stdit.
    Raises CheckpointError if it is missing, or as `check_start`.
    """
    checkpoint = read_start(config, stage)
    if checkpoint is not None:
        check_start(config, stage, checkpoint)
    return checkpoint


def read_start(config: Config, stage: str) -> Checkpoint | None:
    """Like `open_start`, whatever model the configuration makes."""
    path = getattr(config, stage).init_from
    return load_checkpoint(path, kind=None if stage == "mdsa" else "stdit", verify=False) if path else None


def check_start(config: Config, stage: str, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError if a model of this configuration cannot start from a checkpoint.

    The message names the settings. stage, checkpoint: as of `open_start`.
    """
    name, theirs = f"{stage}.init_from={getattr(config, stage).init_from}", checkpoint.config
    if stage == "stdit" and theirs.diffusion.objective == "flow_map":
        raise CheckpointError(f"{name} is a flow map; name the ST-DiT that it was made from")
    _check_settings(name, config, theirs, ("mdsa",) if stage == "mdsa" else ("mdsa", "stdit"))
    if stage == "stdit":
        _check_tokens(name, config, theirs)
        _check_vectors(name, config, theirs)
        _check_positions(name, config, theirs)


def start_mdsa(model: MDSA, checkpoint: Checkpoint) -> FirstWeights:
    """Gives a new MDSA the weights of a trained one, resized to its clips.

    checkpoint: of `open_start`.
    """
    weights = checkpoint.weights("ema" if checkpoint.kind == "mdsa" else "mdsa")
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        theirs = MDSA(checkpoint.config)
    found, changed = resized_weights(weights, theirs, model)
    model.load_state_dict(found)
    resized = f", {len(changed)} of them resized to this run's clips" if changed else ""
    return FirstWeights(f"{_whence(checkpoint)}: {len(found)} tensors{resized}", checkpoint.hash)


def start_stdit(
    model: STDiT, checkpoint: Checkpoint, labels: tuple[str, ...], mdsa: Checkpoint
) -> FirstWeights:
    """Gives a new ST-DiT the weights of a trained one; the line is also about labels and vectors.

    checkpoint: of `open_start`.
    labels: of the new model, in the order of its table.
    mdsa: the autoencoder whose latents the new model trains on.
    """
    weights, own = checkpoint.weights("ema"), model.state_dict()
    weights[LABEL_TABLE] = _table_of(labels, weights[LABEL_TABLE], checkpoint.labels)
    fresh, left = own.keys() - weights.keys(), weights.keys() - own.keys()
    strange = [name for name in fresh | left if not (name.startswith(OF_VECTORS) or ".cross." in name)]
    assert not strange, f"tensors that only one of the two models has: {sorted(strange)}"
    if any(".cross." in name for name in weights):  # trained attention would let random maps through
        own |= {name: torch.zeros_like(own[name]) for name in fresh if name.startswith("context.")}
    model.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
    known, wanted = ({one_form(label) for label in some} for some in (checkpoint.labels, labels))
    told = {
        "new labels": [label for label in labels if one_form(label) not in known],
        "labels left behind": [label for label in checkpoint.labels if one_form(label) not in wanted],
        "new vectors": _names_of_vectors(fresh),
        "vectors left behind": _names_of_vectors(left),
    }
    said = "".join(f"; {what}: {', '.join(names)}" for what, names in told.items() if names)
    line = f"{_whence(checkpoint)}: {len(own.keys() & weights.keys())} tensors{said}"
    related = {checkpoint.hash, checkpoint.mdsa_hash} & {mdsa.hash, mdsa.init_hash} - {None}
    if not related:
        line += (
            f". OTHER PLANES: the latents are of {mdsa.path}, which is not the MDSA that this ST-DiT knows, "
            "nor did it start from that. If their planes mean something else, the weights are worth little; "
            f"write mdsa.init_from={checkpoint.path} and train MDSA anew"
        )
    return FirstWeights(line, checkpoint.hash)


def kept_spacing(ours: Config, theirs: Config) -> tuple[float, float]:
    """The `stdit.position_spacing` with which places of the picture and seconds keep their coordinates.

        s' = s n / n' in space,   s' = s (d' / n') / (d / n) in time

    for clips of d seconds on n tokens a side. The prime marks ours. With stdit.positions=plain there are no
    times, and the second number stays.
    """
    before, after = (max(LatentGeometry.from_config(config).token_sides) for config in (theirs, ours))
    earlier, now = (ClipGeometry.from_config(config).seconds for config in (theirs, ours))
    space, time = theirs.stdit.position_spacing
    if theirs.stdit.positions == "plain":
        return space * before / after, time
    return space * before / after, time * (now / after) / (earlier / before)


def _check_settings(name: str, ours: Config, theirs: Config, kinds: tuple[str, ...]) -> None:
    """Raises CheckpointError if settings of these kinds differ that must not."""
    now, then = setting_values(ours), setting_values(theirs)
    differing = [
        key for key in settings_that_change(*kinds) if key not in MAY_DIFFER and now[key] != then[key]
    ]
    if differing:
        old, new = (", ".join(f"{key}={values[key]}" for key in differing[:4]) for values in (then, now))
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        raise CheckpointError(
            f"{name} was trained with {old}{more}; this run has {new}. Only the size and rate of clips and "
            "mel images, mdsa.plane_size, labels and vectors may differ; write the trained model's values"
        )


def _check_tokens(name: str, ours: Config, theirs: Config) -> None:
    """Raises CheckpointError if the planes' channels or the cells of a token differ."""
    for what in ("channels", "token_patches"):
        now, then = (list(getattr(LatentGeometry.from_config(config), what)) for config in (ours, theirs))
        if now != then:
            raise CheckpointError(
                f"{name} has planes with {what.replace('_', ' ')} {then}, this run {now}; the maps between "
                f"planes and tokens do not fit. Write {_sides_that_fit(theirs)}"
            )


def _sides_that_fit(theirs: Config) -> str:
    """What to write so that planes and tokens are like the trained model's, whatever the clips."""
    wanted = LatentGeometry.from_config(theirs)
    least, most = theirs.stdit.patch_size, 8 * wanted.plane_size
    fit = [
        str(side)
        for side in range(least, most + 1, least)
        if replace(wanted, plane_size=side).token_patches == wanted.token_patches
    ]
    return f"its mdsa.plane_channels, and one of mdsa.plane_size={', '.join(fit)}"


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
