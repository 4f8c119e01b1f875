"""The evaluation of a run or of two folders: what is measured, in what order, and the files with the results.

The measuring itself is in measure.py, the statistics in numbers.py, the text of the tables in table.py.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from proav import storage
from proav.config import Config
from proav.data.store.shards import read_manifest
from proav.errors import TOLD, UserError
from proav.evaluate.clip_sets import ClipSet, View, files_below, reconstructions_of, samples_of, segments_of
from proav.evaluate.feature_scores import clip_values
from proav.evaluate.losses import check_latents, evaluate_stdit
from proav.evaluate.measure import Measured, Measures, SetToMeasure, measure_sets, measured_folder
from proav.evaluate.numbers import Number, Resampling, score_numbers, set_numbers
from proav.evaluate.reconstruction import SCORES as RECONSTRUCTION_SCORES
from proav.evaluate.reconstruction import mean_scores, save_shown
from proav.evaluate.scores import OF_LIBRARIES, OF_ONE, OF_PAIRS
from proav.evaluate.table import compare_tables, summary
from proav.evaluate.yardsticks import YARDSTICK_SCORES, YardstickPlan, make_yardsticks, plan_yardsticks
from proav.metrics import av_align
from proav.metrics.networks import NETWORKS, given, weights_file
from proav.metrics.protocols import Protocol, find_protocol, protocol_hash
from proav.metrics.world import scale_texts
from proav.runs.checkpoint import Checkpoint, check_resumable, load_checkpoint
from proav.runs.layout import RunFolder

OF_FOLDERS = "folders are compared as they are: nothing is reconstructed, and no clip is for training"
"""Why there are no baselines (yardsticks) for two folders."""


@dataclass(frozen=True)
class Comparison:
    """A table to make: a set of made clips beside a set of real ones."""

    name: str
    title: str
    real: ClipSet
    fake: ClipSet
    held_out: ClipSet | None = None
    paired: bool = False
    """Whether each made clip has its original among the real ones."""
    kinds: tuple[str, ...] = (
        "frechet",
        "kernel",
        "precision_recall",
        "density_coverage",
        "diversity",
        "nearest_training",
    )
    """Distances that are meaningful between these sets."""


def evaluate(config: Config) -> dict:
    """Writes eval/metrics.json and eval/reconstructions/; returns the metrics. Ray must be running.

    Measures the folders evaluate.fake and evaluate.real if one of them is set. Otherwise measures the run:
    MDSA's reconstructions, and ST-DiT's loss and samples if they exist. If the same clips, checkpoints and
    settings were evaluated before, nothing changes. An interrupted evaluation continues with the clips that
    are missing. Raises UserError if something that the protocol needs is missing.
    """
    protocol = find_protocol(config.evaluate.protocol)
    view = View.of(protocol, config)
    networks, missing = find_networks(protocol, config.evaluate.weights, view)
    of_folders = bool(config.evaluate.real or config.evaluate.fake)
    mdsa, stdit = (None, None) if of_folders else _checkpoints(config)
    yardsticks = None if of_folders else plan_yardsticks(config)
    if of_folders:
        comparisons = _folders(config, protocol, view)
    else:
        comparisons = _run_sets(config, protocol, view, mdsa, stdit, yardsticks)
    measures = Measures(
        config, networks, (), _lpips_weights(config.evaluate.weights) if "lpips" in protocol.scores else None
    )
    identity = _identity(config, protocol, view, measures, comparisons) | {
        "mdsa_checkpoint": mdsa and mdsa.hash,
        "stdit_checkpoint": stdit and stdit.hash,
        "absent": []
        if av_align.is_installed()
        else [score for score in protocol.scores if score in OF_LIBRARIES],
        "patches": config.mdsa.plane_size,  # not in the hash: models with different patches may be compared
    }
    path = RunFolder(config).metrics
    metrics = json.loads(storage.read_text(path)) if storage.exists(path) else {}
    if metrics.get("protocol") == identity:
        print(f"evaluate: done already, {path}")
    else:
        if yardsticks is not None and not yardsticks.available:
            missing |= dict.fromkeys(YARDSTICK_SCORES, yardsticks.needs)
        metrics = {
            "protocol": identity,
            "yardsticks": yardsticks.to_dict() if yardsticks else {"absent": OF_FOLDERS},
            **_tasks(config, mdsa, stdit, yardsticks),
            **_tables(config, protocol, measures, comparisons, missing),
        }
        storage.write_text(path, json.dumps(metrics, indent=1))
        print(summary(metrics))
        print(f"evaluate: {path}")
    if config.evaluate.compare_with:
        print(compare_tables(metrics, path, config.evaluate.compare_with))
    return metrics


def _identity(
    config: Config, protocol: Protocol, view: View, measures: Measures, comparisons: list[Comparison]
) -> dict:
    """What decides the numbers: the protocol's record, its hash, and a hash of each set of made clips.

    config, protocol: of the evaluation.
    view: the size and rates of the protocol.
    measures: networks and weights to measure with.
    comparisons: the tables to make.
    """
    record = {
        **protocol.to_dict(),
        "view": vars(view),
        **measures.to_dict(),
        "scores": protocol.scores,
        "real": {comparison.name: comparison.real.identity for comparison in comparisons},
        "fake_clips": {comparison.name: len(comparison.fake.items) for comparison in comparisons},
        "num_resamples": config.evaluate.num_resamples,
        "seed": config.seed,
    }
    made = {comparison.name: protocol_hash(comparison.fake.identity) for comparison in comparisons}
    # through JSON, so that it equals the protocol that is read from metrics.json
    return json.loads(json.dumps({"hash": protocol_hash(record), "record": record, "made": made}))


def _tables(
    config: Config,
    protocol: Protocol,
    measures: Measures,
    comparisons: list[Comparison],
    missing: dict[str, str],
) -> dict:
    """Measures every comparison's sets and makes their tables; also the means over MDSA's reconstructions.

    config, protocol: of the evaluation.
    measures: networks and weights to measure with.
    comparisons: the tables to make.
    missing: {network or score that cannot be used: what it needs}.
    """
    resampling = Resampling(config.evaluate.num_resamples, config.seed)
    found, began = {"tables": []}, time.monotonic()
    measured = _measure(config, measures, protocol, comparisons)
    seconds = time.monotonic() - began
    for comparison, sets in zip(comparisons, measured, strict=True):
        if comparison.name == "reconstruction":
            names = [*RECONSTRUCTION_SCORES, *(name for name in YARDSTICK_SCORES if name not in missing)]
            scores = {name: sets["fake"].scores[name] for name in names}
            found["reconstruction"] = mean_scores(scores, sources=sets["fake"].sources, config=config)
        classes = (
            given.class_names(NETWORKS["classifier"], measures.networks["classifier"])
            if "classifier" in measures.networks
            else ()
        )
        rows = [
            number.to_dict()
            for number in table_numbers(protocol, comparison, sets, resampling, missing, classes=classes)
        ]
        table = {"name": comparison.name, "title": comparison.title, "rows": rows, "left_out": left_out(sets)}
        if scale := scale_texts([row["metric"] for row in rows]):
            table["scale"] = scale
        found["tables"].append(table)
    every = {id(one): one for sets in measured for one in sets.values()}.values()
    cost = Counter()
    for one in every:
        cost.update(one.cost)
    if whole := cost.total():
        spent = ", ".join(f"{activity} {part:.1f} s ({part / whole:.0%})" for activity, part in cost.items())
        print(f"evaluate: measured in {seconds:.1f} s; seconds of all workers: {spent}")
        found["measuring"] = {f"{activity}_seconds": round(part, 2) for activity, part in cost.items()}
    return found


def find_networks(
    protocol: Protocol, weights: str | None, view: View
) -> tuple[dict[str, str | None], dict[str, str]]:
    """({network: file of its weights}, {network that cannot be used: what it needs}).

    Raises UserError if a protocol with a fixed number of clips cannot use one of its networks.
    """
    found, missing = {}, {}
    for name in protocol.networks:
        card, path = NETWORKS[name], weights_file(name, weights)
        if card.source and path is None:
            missing[name] = f"evaluate.weights=DIR with {name}.safetensors; to make it: {card.source}"
        elif view.num_frames < card.min_frames:
            missing[name] = f"clips of at least {card.min_frames} frames, these have {view.num_frames}"
        elif view.seconds < card.min_seconds:
            missing[name] = f"clips of at least {card.min_seconds:g} s, these are of {view.seconds:g} s"
        else:
            found[name] = path
    if missing and protocol.num_clips is not None:
        told = "; ".join(
            f"{', '.join(d.name for d in protocol.distances if d.network == name)} needs {needs}"
            for name, needs in missing.items()
        )
        raise UserError(f"evaluate.protocol={protocol.name} can only be measured as a whole: {told}")
    return found, missing


def table_numbers(
    protocol: Protocol,
    comparison: Comparison,
    sets: dict[str, Measured],
    resampling: Resampling,
    missing: dict[str, str],
    *,
    classes: Sequence[str] = (),
) -> list[Number]:
    """All lines of one table. Distances of reconstructions have an r before their name: rFVD.

    protocol: the distances and scores.
    comparison: says which of them apply.
    sets: "real", "fake" and perhaps "held_out", measured.
    resampling: how intervals are drawn.
    missing: {network or score that cannot be used: what it needs}.
    classes: class names of the user's classifier, if there is one.
    """
    real, fake, numbers = sets["real"], sets["fake"], []
    for distance in protocol.distances:
        if distance.kind not in comparison.kinds:
            continue
        if distance.network in missing:
            lines = [Number(distance.name, None, needs=missing[distance.network])]
        else:
            lines = set_numbers(
                distance, real, fake, resampling, held_out=sets.get("held_out"), paired=comparison.paired
            )
        prefix = "r" if comparison.paired else ""
        numbers += [replace(line, metric=prefix + line.metric) for line in lines]
    for score in protocol.feature_scores:
        if score.kind == "class_divergence" and not comparison.paired:
            continue
        if needs := [missing[name] for name in score.networks if name in missing]:
            numbers.append(Number(score.name, None, needs="; ".join(dict.fromkeys(needs))))
            continue
        values = clip_values(score, fake, real=real if comparison.paired else None, classes=classes)
        of_real = clip_values(score, real, classes=classes)
        numbers += score_numbers(
            [score.name],
            _with_score(fake, score.name, values),
            resampling,
            real=_with_score(real, score.name, of_real),
        )
    names = [name for name in protocol.scores if name in OF_ONE or comparison.paired]
    for line in score_numbers(names, fake, resampling, real=real):
        needs = missing.get(line.metric) or _needs_of(line.metric)
        numbers.append(replace(line, needs=needs) if line.value is None else line)
    return numbers


def _with_score(measured: Measured, name: str, values: np.ndarray | None) -> Measured:
    return measured if values is None else replace(measured, scores=measured.scores | {name: values})


def left_out(sets: dict[str, Measured]) -> dict[str, int]:
    """Clips that could not be read, by set and reason."""
    return {
        f"{name}: {reason}": count
        for name, measured in sets.items()
        for reason, count in measured.problems.items()
    }


def _checkpoints(config: Config) -> tuple[Checkpoint, Checkpoint | None]:
    mdsa = load_checkpoint(RunFolder(config).mdsa.checkpoints, kind="mdsa")
    # the seed is not compared: a run may be measured with another seed
    check_resumable(mdsa, config.model_copy(update={"seed": mdsa.config.seed}), mdsa.labels)
    folder = RunFolder(config).stdit.checkpoints
    stdit = load_checkpoint(folder, kind="stdit") if storage.exists(storage.join(folder, "latest")) else None
    if stdit is not None:
        check_latents(config, stdit)
    return mdsa, stdit


def _run_sets(
    config: Config,
    protocol: Protocol,
    view: View,
    mdsa: Checkpoint,
    stdit: Checkpoint | None,
    yardsticks: YardstickPlan,
) -> list[Comparison]:
    """Reconstructions against their originals and, if there are samples, samples against real clips.

    The real clips are those of the training split, as in published tables, and those of held-out sources.

    config, protocol: of the evaluation.
    view: the size and rates of the protocol.
    mdsa, stdit: the run's newest checkpoints; None if there is no ST-DiT.
    yardsticks: the plan of the run's yardsticks.
    """
    from proav.on_ray.resources import device_of, wants_gpu

    split, most = config.evaluate.split, protocol.num_clips or config.evaluate.max_clips
    device = device_of(wants_gpu(config.evaluate.use_gpu))
    found = [
        Comparison(
            "reconstruction",
            f"Reconstructions against their originals, {split} sources",
            segments_of(f"real-{split}", config, view, split=split, max_clips=config.evaluate.max_clips),
            reconstructions_of(
                "reconstructed", config, view, mdsa,
                split=split, max_clips=config.evaluate.max_clips, device=device, yardsticks=yardsticks,
            ),
            paired=True,
            kinds=("frechet", "kernel"),
        )
    ]  # fmt: skip
    if stdit is None or not storage.exists(storage.join(RunFolder(config).samples, "manifest.jsonl")):
        return found
    fake = samples_of("generated", config, view, max_clips=most)
    train = segments_of("real-train", config, view, split="train", max_clips=most)
    _check_counts(protocol, train, fake)
    has_validation = bool(read_manifest(config.data_folder)["splits"].get("validation", {}).get("segments"))
    held_out = (
        segments_of("real-validation", config, view, split="validation", max_clips=most)
        if has_validation
        else None
    )
    found.append(Comparison("generated", "Generated clips against training clips", train, fake, held_out))
    if held_out is not None and protocol.num_clips is None:
        distances = ("frechet", "kernel", "precision_recall", "density_coverage")
        found.append(
            Comparison(
                "generated_held_out",
                "Generated clips against clips of held-out sources",
                held_out,
                fake,
                kinds=distances,
            )
        )
    return found


def _folders(config: Config, protocol: Protocol, view: View) -> list[Comparison]:
    """evaluate.fake against evaluate.real. If one of them is not set, the run's own clips are used."""
    most = protocol.num_clips or config.evaluate.max_clips
    sets = []
    for key, name in (("real", "real"), ("fake", "made")):
        folder = getattr(config.evaluate, key)
        if folder and storage.exists(storage.join(folder, "manifest.json")):
            there = config.model_copy(update={"data": config.data.model_copy(update={"prepared": folder})})
            sets.append(segments_of(name, there, view, split="train", max_clips=most))
        elif folder:
            sets.append(files_below(name, folder, view, max_clips=most))
        elif key == "real":
            sets.append(
                segments_of(
                    f"real-{protocol.real_split}", config, view, split=protocol.real_split, max_clips=most
                )
            )
        else:
            sets.append(samples_of("generated", config, view, max_clips=most))
    _check_counts(protocol, *sets)
    shown = [
        os.path.basename((getattr(config.evaluate, key) or config.run_folder).rstrip("/"))
        for key in ("fake", "real")
    ]
    return [Comparison("folders", f"{shown[0]} against {shown[1]}", *sets)]


def _check_counts(protocol: Protocol, real: ClipSet, fake: ClipSet) -> None:
    """Raises UserError if a protocol takes a fixed number of clips and a set has fewer."""
    for said, clips in (("real", real), ("generated", fake)):
        if protocol.num_clips is not None and len(clips.items) < protocol.num_clips:
            how = f"generate.num_samples={protocol.num_clips}" if clips.name == "generated" else "more videos"
            raise UserError(
                f"evaluate.protocol={protocol.name} takes {protocol.num_clips:,} {said} clips, "
                f"{clips.name} has {len(clips.items):,}; make more ({how}), or choose "
                "evaluate.protocol=small, which takes any number"
            )


def _measure(
    config: Config, measures: Measures, protocol: Protocol, comparisons: Sequence[Comparison]
) -> list[dict[str, Measured]]:
    """The sets of each comparison, measured. Sets that were measured before are read from their files.

    config, protocol: of the evaluation.
    measures: networks and weights to measure with; each set adds its scores.
    comparisons: whose sets are measured. A set of several comparisons is measured once.
    """
    import ray

    from proav.on_ray.resources import largest_resources, wants_gpu

    use_gpu = wants_gpu(config.evaluate.use_gpu)
    workers = config.evaluate.num_workers or max(
        1, int(largest_resources().get("GPU" if use_gpu else "CPU", 1))
    )
    assert ray.is_initialized()
    of_folder, folders = {}, []
    for comparison in comparisons:
        named = {"real": comparison.real, "fake": comparison.fake, "held_out": comparison.held_out}
        folders.append({})
        for name, clips in named.items():
            if clips is not None:
                own = _with_scores(measures, protocol, clips)
                folder = measured_folder(RunFolder(config).evaluation, clips, own)
                of_folder.setdefault(folder, SetToMeasure(clips, own, folder))
                folders[-1][name] = folder
    found = measure_sets(list(of_folder.values()), num_workers=workers, use_gpu=use_gpu)
    measured = dict(zip(of_folder, found, strict=True))
    return [{name: measured[folder] for name, folder in each.items()} for each in folders]


def _with_scores(measures: Measures, protocol: Protocol, clips: ClipSet) -> Measures:
    """`measures` with the protocol's scores for a set of clips; reconstructions have scores of pairs too."""
    scores = tuple(
        score
        for score in protocol.scores
        if score in OF_ONE and (score not in OF_LIBRARIES or av_align.is_installed())
    )
    if clips.identity["kind"] == "reconstructions":
        pairs = (score for score in protocol.scores if score in OF_PAIRS)
        scores = tuple(dict.fromkeys([*RECONSTRUCTION_SCORES, *YARDSTICK_SCORES, *pairs, *scores]))
    weights = measures.perceptual_weights if "lpips" in scores else None
    return replace(measures, scores=scores, perceptual_weights=weights)


def _tasks(
    config: Config, mdsa: Checkpoint | None, stdit: Checkpoint | None, yardsticks: YardstickPlan | None
) -> dict:
    """Runs one Ray task each for the pairs that the report shows, ST-DiT's loss and the yardsticks' file.

    config: of the evaluation.
    mdsa, stdit, yardsticks: if one is None, its task does not run.
    """
    import ray

    from proav.on_ray.resources import device_of, wants_gpu

    use_gpu = wants_gpu(config.evaluate.use_gpu)
    remote = ray.remote(num_cpus=1, num_gpus=int(use_gpu))
    parts = {}
    if mdsa is not None:
        parts["shown"] = remote(save_shown).remote(config, mdsa.path, device=device_of(use_gpu))
    if yardsticks is not None and yardsticks.is_due():
        parts["fitted"] = ray.remote(num_cpus=1)(make_yardsticks).remote(config, yardsticks)
    if stdit is not None:
        parts["stdit"] = remote(evaluate_stdit).remote(config, stdit.path, device=device_of(use_gpu))
    try:
        return {name: value for name, part in parts.items() if (value := ray.get(part)) is not None}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TOLD):  # the worker's own error, without Ray's traceback around it
            raise error.cause from None
        raise


def _lpips_weights(folder: str | None) -> str | None:
    return next(
        (path for name in ("lpips-vgg16", "lpips-alexnet") if (path := weights_file(name, folder))), None
    )


def _needs_of(metric: str) -> str:
    """What clips or settings a score needs; shown if the score is undefined for all clips."""
    needs = {
        "lpips": "evaluate.weights=DIR with lpips-vgg16.safetensors or lpips-alexnet.safetensors",
        "synchrony": "clips of at least 10 frames in which something moves and sounds",
        **(
            {}
            if av_align.is_installed()
            else dict.fromkeys(OF_LIBRARIES, "librosa and OpenCV: pip install 'proav[metrics]'")
        ),
        "ssim": "frames of at least 11x11 pixels",
        "blockiness": "pictures that mdsa.plane_size divides and in which something changes",
        "blockiness_sound": "clips of several frames in whose sound something changes",
        "impact_synchrony": "clips of the made world in whose picture something bounces",
        "impacts_heard": "clips of the made world in whose picture something bounces",
        "sounds_seen": "clips with sounds that begin",
        "median_offset_ms": "clips in which impacts are seen, with sounds at most 0.4 s away",
        "label_fits": "clips with sounds that begin, and labels of the made world's materials",
        "pitch_fits": "clips with impacts that are both seen and heard",
        "followed": "clips with colourful objects",
    }
    return needs.get(metric, "clips with onsets and motion")
