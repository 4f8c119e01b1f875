"""The preprocessing job on Ray Data: sources -> units of work -> shards, resumable and the same to the last bit however often it is stopped.

One row of the Ray data set is one unit; its task writes the unit's files itself (`decode.process_unit`) and returns a short record, so that no
picture passes through the object store. What a unit does is plain Python and knows no Ray.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from proav import storage
from proav.config import Config
from proav.data.decode import WorkUnit, process_unit
from proav.data.manifest import finish, summary
from proav.data.plan import check_settings, settle_plan
from proav.data.shards import read_manifest
from proav.data.sources import files_below, find_sources
from proav.errors import UserError
from proav.progress import Progress

MAX_TASKS_PER_PROCESS = 100
"""Units after which a worker process is replaced: decoders of broken files may leak. Our choice."""


def preprocess(config: Config) -> dict:
    """Prepares the run's data under <run_dir>/data and returns the manifest; Ray must be running (ray.init).

    Finished already with these settings and sources: changes nothing and says so. Interrupted before: makes the units that are missing.
    Raises UserError: nothing to prepare, all sources rejected, a full disk, or data that is there from other settings or sources.
    """
    run_dir = config.run_folder
    data_dir = storage.join(run_dir if storage.is_remote(run_dir) else os.path.abspath(run_dir), "data")  # Ray's workers may stand elsewhere
    finished = storage.exists(storage.join(data_dir, "manifest.json"))
    if finished:
        check_settings(config, data_dir, read_manifest(data_dir)["settings"])
    try:
        sources = find_sources(config)
    except UserError as error:
        if not (finished and _missing_shards(data_dir, read_manifest(data_dir)["shards"]) == set()):
            raise
        print(f"preprocess: done already; the sources cannot be compared any more ({error})")
        return read_manifest(data_dir)
    units = settle_plan(config, data_dir, sources)
    records = _finished_records(data_dir, units)
    if finished and len(records) == len(units) and _index_is_there(data_dir):
        manifest = read_manifest(data_dir)
        print("\n".join([f"preprocess: done already, nothing changed ({manifest['counts']['sources']} sources)", *summary(manifest, data_dir)]))
        return manifest
    for folder in ("segments", "rejects", "units"):
        storage.make_folder(storage.join(data_dir, folder))
    todo = [unit for unit in units if unit.name not in records]
    if records:
        print(f"preprocess: {len(records)} of {len(units)} units are there from an earlier run, {len(todo)} to do")
    for record in _run_units(config, data_dir, todo, done_sources=sum(record["sources"] for record in records.values()), total_sources=len(sources)):
        records[record["name"]] = record
    missing = [unit.name for unit in units if unit.name not in records]
    if missing:  # Ray Data has lost rows before without an error: count, never trust
        raise RuntimeError(f"Ray Data returned {len(units) - len(missing)} of {len(units)} units; run the same command again")
    manifest = finish(config, data_dir, sources, [records[unit.name] for unit in units])
    print("\n".join(f"preprocess: {line}" for line in summary(manifest, data_dir)))
    return manifest


def _run_units(config: Config, data_dir: str, units: Sequence[WorkUnit], *, done_sources: int, total_sources: int) -> Iterator[dict]:
    """The records of the units as they are finished, in any order. Raises UserError where a unit met one."""
    if not units:
        return
    import ray

    assert ray.is_initialized(), "preprocess needs Ray: call ray.init() first, or use proav.jobs.ray_session"
    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    by_name = {unit.name: unit for unit in units}
    progress = Progress("preprocess", total_sources, "sources", start=done_sources)

    def run(row: dict) -> dict:
        try:
            return {"unit": row["unit"], "record": json.dumps(process_unit(config, data_dir, WorkUnit.from_json(row["work"]))), "error": ""}
        except UserError as error:  # Ray would wrap it beyond recognition
            return {"unit": row["unit"], "record": "", "error": str(error)}

    try:
        rows = [{"unit": unit.name, "work": unit.to_json()} for unit in units]
        size = config.data.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            run, compute=ray.data.TaskPoolStrategy(size=min(size, len(rows))), num_cpus=1, max_calls=MAX_TASKS_PER_PROCESS
        )
        for row in results.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            done_sources += len(by_name[row["unit"]].sources)
            progress.update(done_sources)
            yield json.loads(row["record"])
    finally:
        context.enable_progress_bars = before
        progress.close()


def _finished_records(data_dir: str, units: Sequence[WorkUnit]) -> dict[str, dict]:
    """Records of the units that are done and whose files are all there in full length."""
    known = {unit.name for unit in units}
    paths = [path for path in storage.list_files(storage.join(data_dir, "units")) if path.endswith(".json")]
    with ThreadPoolExecutor(8) as pool:
        records = [json.loads(text) for text in pool.map(storage.read_text, paths)]
    missing = _missing_shards(data_dir, [shard for record in records for shard in record["shards"]])
    rejects = {path.rsplit("/", 1)[-1] for path in storage.list_files(storage.join(data_dir, "rejects"))}
    return {
        record["name"]: record
        for record in records
        if record["name"] in known
        and not any(shard["name"] in missing for shard in record["shards"])
        and (record["rejects"] is None or record["rejects"]["name"] in rejects)
    }


def _index_is_there(data_dir: str) -> bool:
    return storage.file_info(storage.join(data_dir, "index.parquet")).size == read_manifest(data_dir)["index"]["bytes"]


def _missing_shards(data_dir: str, shards: Sequence[dict]) -> set[str]:
    """Names of the shards that are not there, or not of the length that was written."""
    sizes = {name: size for name, _, size in files_below(storage.join(data_dir, "segments"))}
    return {shard["name"] for shard in shards if sizes.get(shard["name"]) != shard["bytes"]}
