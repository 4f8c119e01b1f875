"""What a data set is made of, decided before the first file is decoded: the settings that shape it, its sources, and the units of work.

data/plan.parquet is written first and never changed, so that a run that goes on later makes the same units; another configuration or
another list of sources is refused with the differences named. Nothing is decoded here.
"""

import io
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from proav import storage
from proav.config import Config
from proav.data.decode import WorkUnit
from proav.data.rows import open_parquet
from proav.data.sources import SourceRow
from proav.errors import UserError

TARGET_UNITS = 64
"""A small data set is cut into about so many units, for parallel work and short restarts; a large one into units of rows_per_shard sources."""
MAX_UNIT_BYTES = 256 << 20
"""A unit of long films is closed at this size of its files."""

NOT_IN_DATA = {
    "data.sources",  # compared file by file
    "data.listing",
    "data.num_workers",
    "data.source_timeout_seconds",
    "mel.griffin_lim_iterations",
    "mel.griffin_lim_momentum",
}
PLAN_SCHEMA = pa.schema([("unit", pa.string()), ("source", pa.string()), ("source_id", pa.string()), ("digest", pa.string())])


def data_settings(config: Config) -> dict:
    """The settings that shape the stored data, as {"section.key": value}."""
    sections = {"clip": config.clip, "mel": config.mel, "data": config.data}
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.model_dump(mode="json").items()}
    return {key: value for key, value in values.items() if key not in NOT_IN_DATA}


def make_units(sources: Sequence[SourceRow], rows_per_shard: int) -> list[WorkUnit]:
    """Consecutive sources in units; a function of the list alone, never of the cluster."""
    most = min(rows_per_shard, -(-len(sources) // TARGET_UNITS))
    groups: list[list[SourceRow]] = []
    size = 0
    for source in sources:
        if not groups or len(groups[-1]) == most or size + source.num_bytes > MAX_UNIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.num_bytes
    return [WorkUnit(f"{number:06d}", tuple(group)) for number, group in enumerate(groups)]


def settle_plan(config: Config, data_dir: str, sources: Sequence[SourceRow]) -> list[WorkUnit]:
    """The units of work: those of data/plan.parquet if there is one, else new ones, which are written down.

    Raises UserError where the plan was made with other settings or sources; nothing is changed then.
    """
    path = storage.join(data_dir, "plan.parquet")
    if not storage.exists(path):
        units = make_units(sources, config.data.rows_per_shard)
        storage.write_bytes(path, _plan_bytes(units, data_settings(config)))
        return units
    table = open_parquet(path).read()
    check_settings(config, data_dir, json.loads(table.schema.metadata[b"proav.settings"]))
    planned = table.to_pylist()
    _check_sources(data_dir, planned, sources)
    groups: dict[str, list[SourceRow]] = {}
    for row, source in zip(planned, sources, strict=True):
        groups.setdefault(row["unit"], []).append(source)
    return [WorkUnit(name, tuple(group)) for name, group in groups.items()]


def check_settings(config: Config, data_dir: str, stored: dict) -> None:
    """Raises UserError that names the settings in which the stored data and the configuration differ."""
    given = data_settings(config)
    differing = [key for key in sorted({*given, *stored}) if given.get(key) != stored.get(key)]
    if differing:
        changes = ", ".join(f"{key}={stored.get(key)} there, {given.get(key)} now" for key in differing[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UserError(
            f"{data_dir} was made with other settings ({changes}{more}); nothing was changed. "
            f"Choose another run_dir=DIR, or delete {data_dir} to prepare it anew"
        )


def _check_sources(data_dir: str, planned: Sequence[dict], sources: Sequence[SourceRow]) -> None:
    before, now = {row["digest"]: row["source"] for row in planned}, {source.digest: source.key for source in sources}
    new, gone = [key for digest, key in now.items() if digest not in before], [key for digest, key in before.items() if digest not in now]
    if new or gone:
        changed = sorted(set(new) & set(gone))
        parts = [
            f"{len(keys)} {word} (such as {keys[0]})"
            for word, keys in (
                ("new", sorted(set(new) - set(gone))),
                ("gone", sorted(set(gone) - set(new))),
                ("with another label, split or stretch", changed),
            )
            if keys
        ]
        raise UserError(
            f"{data_dir} was made from other sources: {', '.join(parts)}; nothing was changed. "
            f"Choose another run_dir=DIR, or delete {data_dir} to prepare it anew"
        )


def _plan_bytes(units: Sequence[WorkUnit], settings: dict) -> bytes:
    rows = [{"unit": unit.name, "source": row.key, "source_id": row.id, "digest": row.digest} for unit in units for row in unit.sources]
    schema = PLAN_SCHEMA.with_metadata({"proav.settings": json.dumps(settings)})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd", write_statistics=False)
    return buffer.getvalue()
