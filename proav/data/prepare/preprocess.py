"""The preprocessing job on Ray Data: sources -> units of work -> shards.

It can be stopped and resumed at any time; the result is the same to the last bit. One row of the Ray data set
is one task of a few units. The task writes the units' files itself and returns short records, so that no
picture passes through the object store. What a unit does is `unit.py`, in plain Python without Ray.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from proav import storage
from proav.config import Config
from proav.config.reading import config_to_dict
from proav.data.prepare.finish import finish, summary
from proav.data.prepare.isolation import decoder_of_this_process
from proav.data.prepare.plan import Plan, check_settings, settle_plan
from proav.data.prepare.unit import WorkUnit, process_unit, read_record
from proav.data.prepare.vectors import store_vectors
from proav.data.prepare.verify import verify
from proav.data.sources.finding import find_sources
from proav.data.sources.folders import files_below
from proav.data.store.parquet import only_writer
from proav.data.store.shards import read_manifest
from proav.errors import TOLD, UserError, raise_from_text, to_text
from proav.on_ray.resources import largest_resources
from proav.runs.progress import Progress

SOURCES_PER_TASK = 16
"""Small units share a task until they have this many sources. With more, progress would be shown rarely."""
FOLDERS = ("segments", "rejects", "sources", "units")
TASKS_PER_CPU = 4
"""At least this many tasks for each CPU, so that all finish at about the same time."""


def preprocess(config: Config) -> dict:
    """Prepares the run's data under <run_dir>/data, then the vectors of its segments (`vectors.py`).

    Ray must be running (ray.init). Returns the manifest. Raises UserError, see `prepare_segments` and
    `store_vectors`.
    """
    manifest = prepare_segments(config)
    data_dir = _own_data_folder(config)
    with only_writer(data_dir):
        store_vectors(config, data_dir, each=_on_ray)
    return manifest


def prepare_segments(config: Config) -> dict:
    """Prepares segments, rejects and accounts under <run_dir>/data.

    If the data set is finished already with these settings, sources and filters: changes nothing and says so.
    If only the filters differ: decides anew which segments are used, without decoding.
    If preprocessing was interrupted: makes the units that are missing.

    Returns the manifest. Raises UserError if there is nothing to prepare, if all sources are rejected, if the
    disk is full, if there are data of other settings or sources, or if another job is writing them.
    """
    data_dir = _own_data_folder(config)
    manifest = _read_finished(config, data_dir)
    try:
        sources = find_sources(config)
    except UserError as error:
        if manifest is None or not _is_whole(data_dir, manifest) or _filters_changed(config, manifest):
            raise
        print(f"preprocess: done already; the sources cannot be compared any more ({error})")
        return manifest
    storage.make_folder(data_dir)
    with only_writer(data_dir):
        plan = settle_plan(config, data_dir, sources)
        records = finished_records(data_dir, plan)
        if (
            manifest
            and len(records) == len(plan)
            and _is_whole(data_dir, manifest)
            and not _filters_changed(config, manifest)
        ):
            print(
                "\n".join(
                    [
                        "preprocess: done already, nothing changed "
                        f"({manifest['counts']['sources']} sources)",
                        *summary(manifest, data_dir),
                    ]
                )
            )
            return manifest
        for folder in FOLDERS:
            storage.make_folder(storage.join(data_dir, folder))
        if records:
            print(
                f"preprocess: {len(records)} of {len(plan)} units are there from an earlier run, "
                f"{len(plan) - len(records)} to do"
            )
        # if a finished data set has lost files, it is not finished until they are made again
        if len(records) < len(plan):
            storage.delete_file(storage.join(data_dir, "manifest.json"))
        for record in _run_units(config, data_dir, plan, records):
            records[record["name"]] = record
        missing = [name for name in plan.names if name not in records]
        if missing:  # Ray Data has lost rows without an error before
            raise RuntimeError(
                f"Ray Data returned {len(plan) - len(missing)} of {len(plan)} units; "
                "run the same command again"
            )
        for folder in ("", *FOLDERS):
            storage.remove_leftovers(storage.join(data_dir, folder))
        finished, sources = [records[name] for name in plan.names], sources.select(["id", "label"])
        del plan  # it holds the whole table of sources, and the index needs the memory
        manifest = finish(config, data_dir, sources, finished)
        print("\n".join(f"preprocess: {line}" for line in summary(manifest, data_dir)))
        return manifest


def verify_run(config: Config) -> None:
    """Reads all of the run's data again, on all CPUs of the cluster, and prints what was verified.

    Raises UserError that names what is damaged.
    """
    data_dir = (
        config.data_folder if storage.is_remote(config.data_folder) else os.path.abspath(config.data_folder)
    )
    proven = verify(data_dir, each=_on_ray)
    print(
        f"preprocess: verified {data_dir}: {proven['rows']:,} segments in {proven['shards']:,} shards "
        f"({proven['bytes'] / 1e6:.1f} MB) and "
        f"{proven['rejects']:,} rejects account for all {proven['sources']:,} sources; nothing is missing, "
        "doubled, truncated or changed; "
        f"the sources last {proven['seconds']['declared']:,.1f} s: {proven['seconds']['used']:,.1f} are in "
        f"segments and {proven['seconds']['rejected']:,.1f} in rejects, and what is left is less than "
        "a frame, or 0.1 s, at the end of a stretch; "
        f"{proven['silent']:,} segments are silent, and marked so"
    )


def finished_records(data_dir: str, plan: Plan) -> dict[str, dict]:
    """Records of the finished units whose files are all there in full length, by the unit's name."""
    known = set(plan.names)
    paths = [
        path
        for path in storage.list_files(storage.join(data_dir, "units"))
        if path.rsplit("/", 1)[-1].removesuffix(".parquet") in known
    ]
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(read_record, paths))
    sizes = _sizes(data_dir)
    return {record["name"]: record for record in records if _files_are_there(record, sizes)}


def _sizes(data_dir: str) -> dict[str, dict[str, int]]:
    """Bytes of each file, by folder."""
    return {
        folder: {name: size for name, _, size in files_below(storage.join(data_dir, folder))}
        for folder in ("segments", "rejects", "sources")
    }


def _files_are_there(record: dict, sizes: dict[str, dict[str, int]]) -> bool:
    """Whether the record's files are there in full length; False if another version of proav wrote it."""
    rejects = [record["rejects"]] if record["rejects"] else []
    parts = (
        ("segments", record["shards"]),
        ("rejects", rejects),
        ("sources", [record["accounts"]] if "accounts" in record else [{}]),
    )
    return all(
        file and sizes[folder].get(file["name"]) == file["bytes"] for folder, files in parts for file in files
    )


def _own_data_folder(config: Config) -> str:
    if config.data.prepared:
        raise UserError(
            f"data.prepared={config.data.prepared} names data that is prepared already; "
            "leave it empty to prepare data under run_dir"
        )
    run_dir = config.run_folder
    # absolute, because Ray's workers may have another current folder
    return storage.join(run_dir if storage.is_remote(run_dir) else os.path.abspath(run_dir), "data")


def _read_finished(config: Config, data_dir: str) -> dict | None:
    """The manifest if an earlier run has finished, else None.

    Raises UserError if that run had other settings.
    """
    if not storage.exists(storage.join(data_dir, "manifest.json")):
        return None
    manifest = read_manifest(data_dir)
    check_settings(config, data_dir, manifest["settings"])
    return manifest


def _filters_changed(config: Config, manifest: dict) -> bool:
    return manifest["filters"] != config.filters.model_dump(mode="json")


def _is_whole(data_dir: str, manifest: dict) -> bool:
    """Whether the files that the manifest names are there, in full length."""
    sizes = _sizes(data_dir)
    if storage.file_info(storage.join(data_dir, "index.parquet")).size != manifest["index"]["bytes"]:
        return False
    return all(
        sizes[folder].get(file["name"]) == file["bytes"]
        for folder, files in (("segments", "shards"), ("rejects", "rejects"), ("sources", "accounts"))
        for file in manifest[files]
    )


def _run_units(config: Config, data_dir: str, plan: Plan, records: dict[str, dict]) -> Iterator[dict]:
    """The records of the units that have none yet, in the order in which they finish.

    config: of the run.
    data_dir: the data set's folder, absolute.
    plan: all units.
    records: of the finished units, by name.

    Raises UserError or StorageUnavailable if a unit raised it.
    """
    todo = [name for name in plan.names if name not in records]
    if not todo:
        return

    shaping = Config(
        clip=config.clip, mel=config.mel, data=config.data.model_copy(update={"sources": (), "listing": ()})
    )
    decoder_text = json.dumps(config_to_dict(shaping))

    def run(row: dict) -> dict:
        records = []
        try:
            for text in json.loads(zlib.decompress(row["units"])):
                records.append(
                    process_unit(
                        config, data_dir, WorkUnit.from_json(text), decoder_of_this_process(decoder_text)
                    )
                )
            return {"records": json.dumps(records), "error": ""}
        except TOLD as error:
            return {"records": "", "error": to_text(error)}

    total = plan.sources.num_rows
    progress = Progress(
        "preprocess", total, "sources", start=total - sum(plan.num_sources(name) for name in todo)
    )
    try:
        rows = [
            {"units": zlib.compress(json.dumps([plan.unit(name).to_json() for name in names]).encode())}
            for names in _tasks(plan, todo)
        ]
        for row in _map_rows(run, rows, num_workers=config.data.num_workers):
            if row["error"]:
                raise_from_text(row["error"])
            for record in json.loads(row["records"]):
                progress.update(progress.done + record["sources"])
                yield record
    finally:
        progress.close()


def _tasks(plan: Plan, todo: Sequence[str]) -> list[Sequence[str]]:
    """The units of each task: several if they are small.

    Between two tasks a CPU waits 0.2 s for Ray; that is a third of the time to decode a clip.
    """
    per_unit = sum(plan.num_sources(name) for name in todo) / len(todo)
    cpus = max(1, int(largest_resources().get("CPU", 1)))
    units = max(1, min(int(SOURCES_PER_TASK / per_unit), len(todo) // (TASKS_PER_CPU * cpus)))
    return [todo[first : first + units] for first in range(0, len(todo), units)]


def _map_rows(
    function: Callable[[dict], dict], rows: Sequence[dict], *, num_workers: int | None = None
) -> Iterator[dict]:
    """function(row) of each row, a Ray Data task each, in the order in which they finish."""
    import ray

    assert ray.is_initialized(), (
        "preprocess needs Ray: call ray.init() first, or use proav.command_line.ray_session"
    )
    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # Without a size the pool grows with the cluster. A size taken from the present number of CPUs would
        # keep an idle cluster at one node.
        yield from (
            ray.data.from_items(list(rows), override_num_blocks=len(rows))
            .map(function, compute=ray.data.TaskPoolStrategy(size=num_workers), num_cpus=1)
            .iter_rows()
        )
    finally:
        context.enable_progress_bars = before


def _on_ray(function: Callable, items: list) -> Iterable:
    """Like map, over the cluster, in any order. Items and results travel as JSON."""
    rows = [{"item": json.dumps(item)} for item in items]
    return (
        json.loads(row["result"])
        for row in _map_rows(lambda row: {"result": json.dumps(function(json.loads(row["item"])))}, rows)
    )
