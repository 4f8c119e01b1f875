"""The resources of a trial, and how many trials a cluster can run at a time. Nothing starts here.

A training worker keeps its CPU while it waits for the CPUs of its loading actors. So the cluster must have
room for all trials that may begin together, loading actors included.
"""

import itertools
from collections.abc import Iterator

from proav.config import Config, TrainConfig
from proav.on_ray.resources import wants_gpu
from proav.tune.allowed import shares_mdsa
from proav.tune.axes import values_of

TAKEN = ("num_workers", "use_gpu", "cpus_per_worker", "loader", "loader_workers")
"""Settings of training that decide a trial's resources; any of them may be an axis."""


def concurrent_trials(config: Config, largest: dict[str, float]) -> tuple[int, list[str]]:
    """How many trials may run at a time on a cluster, and lines that say what is missing.

    Without loading actors, tune.max_concurrent_trials is not lowered: a trial without room waits and holds
    nothing.

    largest: the resources to which the cluster can grow, {"CPU": 8.0, ...}.
    """
    trains = list(_settings_of_trials(config))
    least, most = (_largest(resources(train, most=which) for train in trains) for which in (False, True))
    notes = [
        f"tune: a trial takes {number:g} {kind} ({' or '.join(_stages(config))}.train.num_workers, "
        f"cpus_per_worker, and loader_workers if loader=actors), the cluster has {largest.get(kind, 0):g}; "
        "it waits until there are more: add nodes, "
        "or stop this job and lower those settings"
        for kind, number in least.items()
        if largest.get(kind, 0) < number
    ]
    room = max(1, min(int(largest.get(kind, 0) // number) for kind, number in most.items()))
    wanted = config.tune.max_concurrent_trials or room
    if wanted > room and any(train.loader == "actors" for train in trains):
        taken = " and ".join(f"{number:g} {kind}" for kind, number in most.items())
        notes.append(
            f"tune: tune.max_concurrent_trials={wanted} is more than the cluster has room for: a trial "
            f"takes {taken}, loading actors included; {room} at a time"
        )
        wanted = room
    return wanted, notes


def resources(train: TrainConfig, *, most: bool) -> dict[str, float]:
    """{"CPU": ..., "GPU": ...} of one trial: for its workers and the actors that load for them.

    most: whether elastic training is counted at its largest size, or at its smallest.
    """
    workers = train.num_workers if isinstance(train.num_workers, int) else train.num_workers[1 if most else 0]
    loaders = train.loader_workers if train.loader == "actors" else 0
    taken = {"CPU": float(workers * (train.cpus_per_worker + loaders))}
    return taken | ({"GPU": float(workers)} if wants_gpu(train.use_gpu) else {})


def _settings_of_trials(config: Config) -> Iterator[TrainConfig]:
    """Each stage's training with every combination of the axes that change a trial's resources."""
    for stage in _stages(config):
        train = getattr(config, stage).train
        axes = {name: values_of(config.tune, f"{stage}.train.{name}", getattr(train, name)) for name in TAKEN}
        for values in itertools.product(*axes.values()):
            yield train.model_copy(update=dict(zip(axes, values, strict=True)))


def _stages(config: Config) -> list[str]:
    """The stages that a trial trains."""
    if config.tune.stage == "mdsa":
        return ["mdsa"]
    return ["stdit"] if shares_mdsa(config) else ["mdsa", "stdit"]


def _largest(all_taken: Iterator[dict[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for taken in all_taken:
        for kind, number in taken.items():
            found[kind] = max(number, found.get(kind, 0.0))
    return found
