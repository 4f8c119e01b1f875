"""Measures sets of clips, unit by unit, on Ray Data.

A complete unit becomes a file. A job that was stopped continues after the last complete unit. A unit always
holds the same clips in one batch, so its bytes do not depend on the number of workers. The mathematics is in
proav/metrics.

Letters: W windows of a clip, D feature width.
"""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from proav import storage
from proav.config import Config
from proav.data.store.parquet import open_parquet, write_shard
from proav.errors import TOLD, raise_from_text, to_text
from proav.evaluate.clip_sets import ClipSet, Item, Loaded
from proav.evaluate.scores import ClipScorer
from proav.foreign_weights import file_hash
from proav.media.melframes import one_torch_thread
from proav.media.torchaudio import resample
from proav.metrics.networks import FeatureNetwork, load_network
from proav.models.perceptual import LPIPS
from proav.runs.progress import Progress

UNIT_CLIPS = 16
"""Clips of a unit: few enough to take only minutes on a CPU, enough for a GPU's batch."""


@dataclass(frozen=True)
class Measures:
    """What is measured of every clip of a set."""

    config: Config
    """Gives the mel settings for the scores of sound, and MDSA's patches."""
    networks: dict[str, str | None]
    """Feature networks by name, with the file of their weights."""
    scores: tuple[str, ...]
    """Names of scores of single clips, from scores.py."""
    perceptual_weights: str | None = None
    """The file of LPIPS's weights, if LPIPS is among the scores."""

    @property
    def schema(self) -> pa.Schema:
        fields = [
            ("id", pa.string()),
            ("source", pa.string()),
            ("label", pa.string()),
            ("problem", pa.string()),
        ]
        fields += [(name, pa.float64()) for name in self.scores]
        for name in self.networks:
            fields += [(f"features:{name}", pa.large_binary()), (f"windows:{name}", pa.int32())]
        return pa.schema(fields)

    def to_dict(self) -> dict:
        """What decides measurements, apart from the clips; networks by the checksums of their weights."""
        sums = {name: load_network(name, path).weights_sha256 for name, path in self.networks.items()}
        lpips = file_hash(self.perceptual_weights) if self.perceptual_weights else None
        return {
            "networks": sums,
            "scores": list(self.scores),
            "lpips": lpips,
            "mel": self.config.mel.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Measured:
    """A measured set: the clips that could be read, in the set's order.

    features: {network: one float32 [W, D] for each clip}.
    """

    ids: list[str]
    sources: list[str]
    labels: list[str]
    scores: dict[str, np.ndarray]
    features: dict[str, list[np.ndarray]]
    problems: dict[str, int]
    """Clips that were left out, counted by reason."""
    cost: dict[str, float]
    """Wall seconds by activity, summed over the units that were measured now."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class SetToMeasure:
    """A set of clips, what to measure of each, and the folder of its units' files (`measured_folder`)."""

    clip_set: ClipSet
    measures: Measures
    folder: str

    @property
    def num_units(self) -> int:
        return -(-len(self.clip_set.items) // UNIT_CLIPS)


class Measurer:
    """Measures units of several sets. Ray Data runs it as an actor; a test can call it directly.

    Networks are loaded once, when a unit first needs them.
    """

    def __init__(self, sets: Sequence[SetToMeasure], device: str = "cpu") -> None:
        """sets: what rows name by its place. device: where networks and LPIPS run."""
        self.sets, self.device = sets, device
        self.network = functools.cache(functools.partial(load_network, device=device))
        self.lpips = functools.cache(lambda weights: LPIPS(weights).to(device))
        self._scorers: dict[int, ClipScorer] = {}

    def __call__(self, row: dict) -> dict:
        """Measures {"set": place, "unit": number} and writes the unit's file.

        Returns the row with "error" and "seconds".
        error: the text of a user's mistake, or empty. It is not raised, because Ray would wrap the exception.
        seconds: JSON of {activity: seconds}.
        """
        one, unit = self.sets[row["set"]], row["unit"]
        try:
            rows, seconds = self.measure(row["set"], unit_items(one.clip_set, unit))
            write_shard(unit_path(one.folder, unit), rows, one.measures.schema, rows_per_group=UNIT_CLIPS)
        except TOLD as error:
            return row | {"error": to_text(error), "seconds": "{}"}
        return row | {"error": "", "seconds": json.dumps(seconds)}

    def measure(self, place: int, items: Sequence[Item]) -> tuple[list[dict], dict[str, float]]:
        """One row for each item, and the seconds by activity: "read", "scores", and each network's name.

        place: of the items' set.
        """
        clip_set, measures = self.sets[place].clip_set, self.sets[place].measures
        # one thread: units run in parallel, and sums must not depend on the machine's number of cores
        with one_torch_thread():
            networks = {name: self.network(name, path) for name, path in measures.networks.items()}
            score = self._scorer(place)
            began = time.perf_counter()
            loaded = clip_set.load(items)
            seconds = {"read": time.perf_counter() - began}
            rows = [_empty_row(measures, item, one.problem) for item, one in zip(items, loaded, strict=True)]
            readable = [(row, one) for row, one in zip(rows, loaded, strict=True) if one.clip is not None]
            for name, network in networks.items():
                began = time.perf_counter()
                for (row, _), features_WD in zip(
                    readable, self._features(network, [one for _, one in readable]), strict=True
                ):
                    row |= {f"features:{name}": features_WD.tobytes(), f"windows:{name}": len(features_WD)}
                seconds[name] = time.perf_counter() - began
            began = time.perf_counter()
            for row, one in readable:
                row |= score(one.clip, one.real, one.scores, label=row["label"])
            seconds["scores"] = time.perf_counter() - began
        return rows, seconds

    def _scorer(self, place: int) -> ClipScorer:
        if place not in self._scorers:
            measures = self.sets[place].measures
            lpips = self.lpips(measures.perceptual_weights) if measures.perceptual_weights else None
            self._scorers[place] = ClipScorer(measures.config, measures.scores, lpips)
        return self._scorers[place]

    def _features(self, network: FeatureNetwork, loaded: Sequence[Loaded]) -> Iterator[np.ndarray]:
        """float32 [W, D] of each clip. On a CPU, one clip at a time needs the least memory and is as fast."""
        size = UNIT_CLIPS if self.device != "cpu" else 1
        for first in range(0, len(loaded), size):
            clips = [one.clip for one in loaded[first : first + size]]
            batch = []
            if network.card.kind != "audio":
                batch.append(torch.from_numpy(np.stack([clip.video for clip in clips])))
            if network.card.kind != "video":
                batch.append(
                    resample(
                        torch.from_numpy(np.stack([clip.audio for clip in clips])),
                        clips[0].sample_rate,
                        network.card.sample_rate,
                    )
                )
            yield from network(*batch).float().cpu().numpy()


def _empty_row(measures: Measures, item: Item, problem: str) -> dict:
    row = {"id": item.id, "source": item.source, "label": item.label, "problem": problem}
    for name in measures.networks:
        row |= {f"features:{name}": None, f"windows:{name}": 0}
    return row | dict.fromkeys(measures.scores, math.nan)


def unit_items(clip_set: ClipSet, unit: int) -> tuple[Item, ...]:
    return clip_set.items[unit * UNIT_CLIPS : (unit + 1) * UNIT_CLIPS]


def unit_path(folder: str, unit: int) -> str:
    return storage.join(folder, f"{unit:06d}.parquet")


def measured_folder(evaluation_folder: str, clip_set: ClipSet, measures: Measures) -> str:
    """<evaluation folder>/measured/<set>-<hash>; the hash covers everything that decides the measurements."""
    follows_from = {
        "set": clip_set.identity,
        "view": vars(clip_set.view),
        "unit": UNIT_CLIPS,
        "patches": measures.config.mdsa.plane_size,  # blockiness depends on it
        **measures.to_dict(),
    }
    told = json.dumps(follows_from, sort_keys=True)
    return storage.join(
        evaluation_folder, "measured", f"{clip_set.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    )


def measure_sets(sets: Sequence[SetToMeasure], *, num_workers: int, use_gpu: bool) -> list[Measured]:
    """Measures the units that have no file yet, and reads all units back. Ray must be running.

    All sets share the actors, so each actor starts and loads its networks once.

    sets: what to measure.
    num_workers: the most actors.
    use_gpu: whether each actor takes a GPU.
    Raises UserError if weights are missing or wrong.
    """
    import ray

    from proav.on_ray.resources import device_of

    todo = []
    for place, one in enumerate(sets):
        storage.make_folder(one.folder)
        missing = (n for n in range(one.num_units) if not storage.exists(unit_path(one.folder, n)))
        todo += [{"set": place, "unit": unit} for unit in missing]
    total = sum(one.num_units for one in sets)
    progress = Progress("evaluate", total, "units", start=total - len(todo))
    spent: list[dict[str, float]] = [{} for _ in sets]
    try:
        if todo:
            ray.data.DataContext.get_current().enable_progress_bars = False
            done = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
                Measurer,
                fn_constructor_kwargs={"sets": sets, "device": device_of(use_gpu)},
                compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(todo))),
                num_cpus=1,
                num_gpus=int(use_gpu),
            )
            for number, row in enumerate(done.iter_rows(), start=1):
                if row["error"]:
                    raise_from_text(row["error"])
                cost = spent[row["set"]]
                for activity, seconds in json.loads(row["seconds"]).items():
                    cost[activity] = cost.get(activity, 0.0) + seconds
                progress.update(total - len(todo) + number)
    finally:
        progress.close()
        for one in sets:
            storage.remove_leftovers(one.folder)
    return [dataclasses.replace(read_measured(one), cost=cost) for one, cost in zip(sets, spent, strict=True)]


def read_measured(one: SetToMeasure) -> Measured:
    """All units of a set, in order. Raises an error if a unit is missing: no clip is lost silently."""
    clip_set, measures, folder = one.clip_set, one.measures, one.folder
    tables = [open_parquet(unit_path(folder, unit)).read() for unit in range(one.num_units)]
    table = pa.concat_tables(tables)
    if table.num_rows != len(clip_set.items):
        raise RuntimeError(
            f"{folder} holds {table.num_rows} of {len(clip_set.items)} clips; "
            "delete it and run the same command again"
        )
    problems: dict[str, int] = {}
    for text in table.column("problem").to_pylist():
        if text:
            reason = text.split(":")[0]
            problems[reason] = problems.get(reason, 0) + 1
    table = table.filter(pc.equal(table.column("problem"), ""))
    features = {}
    for name in measures.networks:
        windows, values = (
            table.column(f"windows:{name}").to_pylist(),
            table.column(f"features:{name}").to_pylist(),
        )
        features[name] = [
            np.frombuffer(data, np.float32).reshape(count, -1)
            for data, count in zip(values, windows, strict=True)
        ]
    return Measured(
        ids=table.column("id").to_pylist(),
        sources=table.column("source").to_pylist(),
        labels=table.column("label").to_pylist(),
        scores={name: table.column(name).to_numpy() for name in measures.scores},
        features=features,
        problems=problems,
        cost={},
    )
