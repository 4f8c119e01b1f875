"""The plan of a data set, made before the first file is decoded: its settings, sources and units of work.

data/plan.parquet is written first and never changed, so that a resumed run makes the same units. Another
configuration or another list of sources is refused, and the differences are named. Nothing is decoded here;
`unit.py` decodes.
"""

import io
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proav import storage
from proav.config import Config
from proav.config.changes import setting_values, settings_that_change
from proav.data.prepare.unit import WorkUnit
from proav.data.sources.finding import rows_of
from proav.data.store.parquet import REPAIR, DamagedShard, read_whole
from proav.errors import UserError

TARGET_UNITS = 64
"""A small data set is cut into about this many units, for parallel work and short restarts."""
MAX_UNIT_SOURCES = 256
"""Most sources in a unit. So a crash costs at most half an hour of work, and two million sources are 8,000
units.
"""
MAX_UNIT_BYTES = 256 << 20
"""Most bytes of a unit's files, unless it has a single file. This keeps units of long films short."""

PLAN_SCHEMA = pa.schema(
    [("unit", pa.string()), ("source", pa.string()), ("source_id", pa.string()), ("digest", pa.string())]
)


def data_settings(config: Config) -> dict:
    """The settings that shape the stored data, as {"section.key": value}."""
    values = setting_values(config)
    return {key: values[key] for key in settings_that_change("data")}


class Plan:
    """The units of work over a table of sources.

    A unit's rows are made when the unit is asked for, so that a plan of millions of sources stays small.
    """

    def __init__(self, sources: pa.Table, names: list[str], firsts: np.ndarray) -> None:
        """sources: a table of SOURCE_SCHEMA. names: of the units. firsts: int64, the first row of each."""
        self.sources, self.names = sources, names
        self._bounds = np.append(firsts, sources.num_rows)
        self._place = {name: place for place, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.names)

    def num_sources(self, name: str) -> int:
        """How many sources the unit of this name has."""
        place = self._place[name]
        return int(self._bounds[place + 1] - self._bounds[place])

    def table(self, name: str) -> pa.Table:
        """The unit's rows of the table of sources, without a copy."""
        return self.sources.slice(self._bounds[self._place[name]], self.num_sources(name))

    def unit(self, name: str) -> WorkUnit:
        """The unit of this name, with its rows."""
        return WorkUnit(name, tuple(rows_of(self.table(name))))

    def units(self) -> Iterator[WorkUnit]:
        """All units, in order, one at a time."""
        return map(self.unit, self.names)


def make_plan(sources: pa.Table) -> Plan:
    """Groups consecutive sources into units; the result depends on the table alone, not on the cluster."""
    most = min(MAX_UNIT_SOURCES, -(-sources.num_rows // TARGET_UNITS))
    num_bytes = np.append(0, np.cumsum(sources.column("num_bytes").to_numpy()))
    firsts, row = [], 0
    while row < sources.num_rows:
        firsts.append(row)
        fits = int(np.searchsorted(num_bytes, num_bytes[row] + MAX_UNIT_BYTES, side="right")) - 1
        row = max(row + 1, min(row + most, fits))
    return Plan(sources, [f"{number:06d}" for number in range(len(firsts))], np.array(firsts, np.int64))


def settle_plan(config: Config, data_dir: str, sources: pa.Table) -> Plan:
    """The units of work: those of data/plan.parquet if there is one, else new ones, which are written there.

    Raises UserError, and changes nothing, if the plan was made with other settings or sources, if there are
    finished units but no plan, or if the plan is damaged.
    """
    path = _plan_path(data_dir)
    if not storage.exists(path):
        if storage.list_files(storage.join(data_dir, "units")):
            raise UserError(
                f"{data_dir} has finished units of work, but no plan.parquet that names their sources; "
                f"restore the file, choose another run_dir=DIR, or delete {data_dir} to prepare it anew"
            )
        plan = make_plan(sources)
        storage.write_bytes(path, _plan_bytes(plan, data_settings(config)))
        return plan
    check_settings(config, data_dir, json.loads(read_plan(data_dir).schema.metadata[b"proav.settings"]))
    if read_plan(data_dir, "digest").column("digest") != sources.column("digest"):
        _refuse_sources(data_dir, read_plan(data_dir, "source", "digest"), sources)
    units = read_plan(data_dir, "unit").column("unit").combine_chunks().dictionary_encode()
    firsts = np.unique(units.indices.to_numpy(), return_index=True)[1]
    return Plan(sources, units.dictionary.to_pylist(), firsts)


def read_plan(data_dir: str, *columns: str) -> pa.Table:
    """These columns of data/plan.parquet; the table's metadata holds the settings.

    Raises DamagedShard if the file is missing or damaged. No job can make it again.
    """
    path = _plan_path(data_dir)
    try:
        if storage.exists(path):
            return read_whole(path, without=set(PLAN_SCHEMA.names) - set(columns))
        said = f"{path} is missing"
    except DamagedShard as error:
        said = str(error).removesuffix(f"; {REPAIR}")
    raise DamagedShard(
        f"{said}; it cannot be made again: restore it from a copy, or delete {data_dir} to prepare it anew"
    )


def _plan_path(data_dir: str) -> str:
    return storage.join(data_dir, "plan.parquet")


def check_settings(config: Config, data_dir: str, stored: dict) -> None:
    """Raises UserError that names the settings in which stored data and configuration differ."""
    given = data_settings(config)
    if unknown := sorted(given.keys() ^ stored.keys()):
        raise UserError(
            f"{data_dir} was made by another version of proav (they differ in the settings "
            f"{', '.join(unknown[:4])}); nothing was changed. "
            f"Choose another run_dir=DIR, or delete {data_dir} to prepare it anew"
        )
    differing = [key for key in sorted(given) if given[key] != stored[key]]
    if differing:
        changes = ", ".join(f"{key}={stored[key]} there, {given[key]} now" for key in differing[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UserError(
            f"{data_dir} was made with other settings ({changes}{more}); nothing was changed. "
            f"Choose another run_dir=DIR, or delete {data_dir} to prepare it anew"
        )


def _refuse_sources(data_dir: str, planned: pa.Table, sources: pa.Table) -> None:
    """Raises UserError that names the sources in which the plan and the table differ."""
    new = set(
        sources.filter(pc.invert(pc.is_in(sources.column("digest"), planned.column("digest"))))
        .column("key")
        .to_pylist()
    )
    gone = set(
        planned.filter(pc.invert(pc.is_in(planned.column("digest"), sources.column("digest"))))
        .column("source")
        .to_pylist()
    )
    differences = (
        ("new", sorted(new - gone)),
        ("gone", sorted(gone - new)),
        ("with another label, split or stretch", sorted(new & gone)),
    )
    parts = [f"{len(keys):,} {word} (such as {keys[0]})" for word, keys in differences if keys]
    raise UserError(
        f"{data_dir} was made from other sources: {', '.join(parts)}; nothing was changed. "
        f"Choose another run_dir=DIR, or delete {data_dir} to prepare it anew"
    )


def _plan_bytes(plan: Plan, settings: dict) -> bytes:
    names = pa.array(plan.names, pa.string()).take(
        pa.array(np.repeat(np.arange(len(plan)), [plan.num_sources(name) for name in plan.names]))
    )
    columns = [names, *(plan.sources.column(name) for name in ("key", "id", "digest"))]
    table = pa.table(columns, schema=PLAN_SCHEMA.with_metadata({"proav.settings": json.dumps(settings)}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, use_dictionary=["unit"])
    return buffer.getvalue()
