"""One unit of preprocessing: a few sources in; shards of segments, rejects and accounts out.

These are plain functions that work without Ray; the job on Ray is `preprocess.py`. A source is decoded
segment by segment (`source_decoder.py`), so memory does not grow with the length of a film. Nothing here
imports PyTorch: the process that writes a unit needs none, and so starts sooner.

A unit's files have fixed names. Its record, units/<name>.parquet, is written last. A unit with a record is
done; one without a record is made again, to the same bytes.
"""

import contextlib
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proav import storage
from proav.config import Config
from proav.data.sources.finding import SourceRow, segment_id
from proav.data.store.parquet import ShardWriter, open_parquet, write_shard
from proav.data.store.schema import (
    ACCOUNT_SCHEMA,
    REJECT_SCHEMA,
    SEGMENT_COMPRESSION,
    SEGMENT_SCHEMA,
    UNIT_SCHEMA,
)
from proav.errors import MediaError
from proav.media.segments import About, Lost

RECORD_KEY = b"proav.unit"


@dataclass(frozen=True)
class WorkUnit:
    """Sources that are decoded by one task."""

    name: str
    sources: tuple[SourceRow, ...]

    def to_json(self) -> str:
        return json.dumps({"name": self.name, "sources": [asdict(source) for source in self.sources]})

    @classmethod
    def from_json(cls, text: str) -> "WorkUnit":
        values = json.loads(text)
        return cls(
            values["name"],
            tuple(SourceRow(**{**source, "labels": tuple(source["labels"])}) for source in values["sources"]),
        )


class Account:
    """Where the seconds of one source went."""

    def __init__(self, source: SourceRow) -> None:
        self.source = source
        self.reached = source.start_seconds
        self.used = self.rejected = 0.0
        self.about = About(source.start_seconds)

    @property
    def end(self) -> float:
        """Where the source ends in seconds, as far as is known."""
        return (
            max(self.reached, self.about.end_seconds)
            if self.source.end_seconds is None
            else self.source.end_seconds
        )

    def use(self, segment: dict) -> None:
        """Counts a row of SEGMENT_SCHEMA as used."""
        seconds = segment["num_frames"] / segment["fps"]
        self.used, self.reached = self.used + seconds, segment["start_seconds"] + seconds

    def reject(self, row: dict) -> None:
        """Counts a row of REJECT_SCHEMA as rejected, if its end is known."""
        if row["end_seconds"] is not None:
            self.rejected, self.reached = (
                self.rejected + row["end_seconds"] - row["start_seconds"],
                row["end_seconds"],
            )

    def rest(self, error: MediaError) -> dict:
        """The row that rejects everything after the last span that was used or rejected."""
        end = self.end if self.end > self.reached else None
        return reject_row(self.source, self.reached, end, error.reason, str(error))

    def row(self) -> dict:
        """One row of ACCOUNT_SCHEMA."""
        source = self.source
        return asdict(self.about) | {
            "source": source.key, "source_id": source.id,
            "start_seconds": source.start_seconds, "end_seconds": self.end,
            "used_seconds": self.used, "rejected_seconds": self.rejected,
        }  # fmt: skip


def process_unit(config: Config, data_dir: str, unit: WorkUnit, decoder: Any) -> dict:
    """Decodes the unit's sources and writes its shards, rejects, accounts and record.

    config: of the run.
    data_dir: the data set's folder.
    unit: what to decode.
    decoder: has the method `rows` of `source_decoder.SourceDecoder`.

    Returns the record: {"name", "sources", "shards": [{"name", "rows", "bytes", "sha256"}], "rejects": one
    such entry or None, "accounts": one such entry, "seconds": {"declared", "used", "rejected"}, "noted"}.

    Raises UserError if the disk is full. Raises StorageUnavailable. A source that cannot be used does not
    raise: it is rejected with a reason.
    """
    shards, rejects, accounts = _RollingShards(data_dir, unit.name, config.data.rows_per_shard), [], []
    with shards:
        for source in unit.sources:
            account = Account(source)
            try:
                for part in decoder.rows(source):
                    match part:
                        case dict():
                            shards.write(part)
                            account.use(part)
                        case Lost():
                            rejects.append(
                                reject_row(
                                    source, part.start_seconds, part.end_seconds, part.reason, part.message
                                )
                            )
                            account.reject(rejects[-1])
                        case About():
                            account.about = part
            except MediaError as error:
                rejects.append(account.rest(error))
                account.reject(rejects[-1])
            accounts.append(account.row())
    shards.delete_later()
    rejects_path = storage.join(data_dir, "rejects", f"{unit.name}.parquet")
    if not rejects:
        storage.delete_file(rejects_path)
    record = {
        "name": unit.name,
        "sources": len(unit.sources),
        "shards": shards.results,
        "rejects": write_shard(rejects_path, rejects, REJECT_SCHEMA, rows_per_group=1024)
        if rejects
        else None,
    }
    record |= write_accounts(data_dir, unit.name, accounts)
    write_record(data_dir, record, shards.index_rows)
    return record


def write_accounts(data_dir: str, name: str, accounts: list[dict]) -> dict:
    """Writes sources/<name>.parquet and returns the file's entries for the unit's record."""
    path = storage.join(data_dir, "sources", f"{name}.parquet")
    return {
        "accounts": write_shard(path, accounts, ACCOUNT_SCHEMA, rows_per_group=1024, compression="zstd"),
        "seconds": {
            "declared": sum(row["end_seconds"] - row["start_seconds"] for row in accounts),
            "used": sum(row["used_seconds"] for row in accounts),
            "rejected": sum(row["rejected_seconds"] for row in accounts),
        },
        "noted": sum(bool(row["note"]) for row in accounts),
    }


def write_record(data_dir: str, record: dict, index_rows: list[dict]) -> None:
    """Writes units/<name>.parquet: the record as metadata, and a row of UNIT_SCHEMA for each segment."""
    schema = UNIT_SCHEMA.with_metadata({RECORD_KEY: json.dumps(record)})
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(index_rows, schema=schema),
        buffer,
        compression="zstd",
        write_statistics=False,
        use_dictionary=False,
    )
    storage.write_bytes(storage.join(data_dir, "units", f"{record['name']}.parquet"), buffer.getvalue())


def read_record(path: str) -> dict:
    """The record of a finished unit. Raises DamagedShard if the file is missing or damaged."""
    with contextlib.closing(open_parquet(path)) as file:
        return json.loads(file.schema_arrow.metadata[RECORD_KEY])


def row_checksum(video: bytes, audio: bytes, mel: bytes) -> str:
    """32 hexadecimal digits of SHA-256. Two segments have the same digits only if their content is equal."""
    digest = hashlib.sha256()
    for part in (video, audio, mel):
        digest.update(part)
    return digest.hexdigest()[:32]


def reject_row(
    source: SourceRow, start_seconds: float, end_seconds: float | None, reason: str, message: str
) -> dict:
    """One row of REJECT_SCHEMA.

    source: the source whose span is rejected.
    start_seconds: where in the source the span begins.
    end_seconds: where the span ends; None if unknown.
    reason: a short stable word for tables.
    message: for people. In it the source's path is replaced by its key.
    """
    return {
        "id": segment_id(source.key, start_seconds), "source": source.key, "source_id": source.id,
        "start_seconds": start_seconds,
        "end_seconds": end_seconds, "reason": reason, "message": message.replace(source.path, source.key),
    }  # fmt: skip


class _RollingShards:
    """Writes rows into <unit>-000.parquet, <unit>-001.parquet, ..., each of at most `rows_per_shard` rows.

    No file is opened before its first row.
    """

    def __init__(self, data_dir: str, unit: str, rows_per_shard: int) -> None:
        self.folder, self.unit, self.rows_per_shard = storage.join(data_dir, "segments"), unit, rows_per_shard
        self.results: list[dict] = []
        self.index_rows: list[dict] = []
        self._writer: ShardWriter | None = None

    def write(self, row: dict) -> None:
        """Appends one row of SEGMENT_SCHEMA."""
        path = self._path(len(self.results))
        if self._writer is None:
            self._writer = ShardWriter(path, SEGMENT_SCHEMA, compression=SEGMENT_COMPRESSION)
        place = {"shard": path.rsplit("/", 1)[-1], "row": self._writer.num_rows}
        self._writer.write(row)
        self.index_rows.append(
            {field: place[field] if field in place else row[field] for field in UNIT_SCHEMA.names}
        )
        if self._writer.num_rows == self.rows_per_shard:
            self._close()

    def delete_later(self) -> None:
        """Deletes shards beyond this run's last one; a killed earlier run may have left them.

        The earlier run may have written more, if a source has changed or its decoder has died since.
        """
        end = first = len(self.results)
        while storage.exists(self._path(end)):
            end += 1
        for number in reversed(range(first, end)):  # the last one first, so that a kill here leaves no gap
            storage.delete_file(self._path(number))

    def __enter__(self) -> "_RollingShards":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self._close()
        elif self._writer:
            self._writer.abort()

    def _path(self, number: int) -> str:
        return storage.join(self.folder, f"{self.unit}-{number:03d}.parquet")

    def _close(self) -> None:
        if self._writer:
            self.results.append(self._writer.close())
            self._writer = None
