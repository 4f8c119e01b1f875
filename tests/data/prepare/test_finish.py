"""What the end of preprocessing counts and says, for rows that a stand-in for the decoder gives."""

from pathlib import Path

import pyarrow as pa
import pytest

from proav.data.prepare.finish import finish, summary
from proav.data.prepare.unit import WorkUnit, process_unit
from proav.data.sources.finding import SourceRow
from proav.data.store.parquet import DamagedShard
from proav.data.store.shards import read_accounts, read_rejects
from proav.errors import UserError
from proav.media.segments import About, Lost
from tests.tiny import tiny_config
from tests.train.tiny_run import RandomSegments


class Stretches(RandomSegments):
    """Stands in for a decoder: a segment of random pictures for each source, with other values in its row.

    values: {column: value} by the source's key.
    notes: on other tracks, by the source's key.
    """

    def __init__(self, config, values, notes):
        super().__init__(config, damaged=None, frames=8, shots=(), other_split=None)
        self.values, self.notes = values, notes

    def rows(self, source):
        yield About(source.start_seconds + 1.8, note=self.notes.get(source.key, ""))
        for row in super().rows(source):
            yield row | {"labels": list(source.labels)} | self.values.get(source.key, {})
        yield Lost(source.start_seconds + 1.6, source.start_seconds + 1.8, "too_short", "")


def source(number, label="rain", start=0.0):
    key = f"{number}.mp4"
    return SourceRow(f"id {number}", key, key, label, (label,) if label else (), "train", start)


def make(tmp_path, sources, *words, values=None, notes=None):
    """Units of one source each. Returns the configuration, the sources' table and the records."""
    config = tiny_config(f"run_dir={tmp_path}", *words)
    decoder = Stretches(config, values or {}, notes or {})
    units = [WorkUnit(f"{number:06d}", (row,)) for number, row in enumerate(sources)]
    records = [process_unit(config, f"{tmp_path}/data", unit, decoder) for unit in units]
    table = pa.table({"id": [row.id for row in sources], "label": [row.label for row in sources]})
    return config, table, records


def finished(tmp_path, sources, *words, **given):
    """The manifest, and the lines of its summary."""
    config, table, records = make(tmp_path, sources, *words, **given)
    manifest = finish(config, f"{tmp_path}/data", table, records)
    return manifest, summary(manifest, f"{tmp_path}/data")


def test_filters_that_leave_nothing_are_named_by_their_settings(tmp_path):
    words = ("filters.min_rms_db=-50", "filters.max_black=0.25", "filters.duplicates=near")
    values = {"0.mp4": {"rms": 0.0}, "1.mp4": {"black": 1.0}}
    with pytest.raises(UserError) as caught:
        finished(tmp_path, [source(0), source(1)], *words, values=values)
    said = "none of the 2 segments in use (black: 1, silent: 1); loosen filters.max_black=0.25, "
    assert str(caught.value).endswith(f"{said}filters.min_rms_db=-50.0")


def test_a_source_with_other_tracks_counts_once(tmp_path):
    sources = [*(source(0, start=10.0 * number) for number in range(3)), source(1)]
    manifest, lines = finished(tmp_path, sources, notes={"0.mp4": "sound track 1 is not read"})
    assert manifest["counts"]["sources_with_other_tracks"] == 1
    assert any(line.startswith("OTHER TRACKS: 1 sources") for line in lines)


def test_labels_that_the_filters_leave_out_are_not_said_to_be_those_of_the_settings(tmp_path):
    sources, values = [source(0, "rain"), source(1, "dog")], {"1.mp4": {"black": 1.0}}
    _, lines = finished(tmp_path, sources, "filters.max_black=0.5", values=values)
    (line,) = [line for line in lines if line.startswith("NO CLIPS")]
    assert line == "NO CLIPS for the labels dog: the filters leave out all that there are"
    (tmp_path / "named").mkdir()
    _, lines = finished(tmp_path / "named", sources, "data.labels=[rain,dog,cat]")
    assert "NO CLIPS for the labels cat of data.labels" in lines


def test_silent_segments_that_are_used_are_counted(tmp_path):
    values = {"0.mp4": {"silent": True, "black": 1.0}, "1.mp4": {"silent": True}}
    sources = [source(number) for number in range(3)]
    manifest, lines = finished(tmp_path, sources, "filters.max_black=0.5", values=values)
    assert manifest["counts"]["silent_segments"] == 2
    assert any(line.startswith("SILENT: 1 of 3 segments") for line in lines)
    values["1.mp4"] = {"black": 1.0}
    (tmp_path / "none").mkdir()
    _, lines = finished(tmp_path / "none", sources, "filters.max_black=0.5", values=values)
    assert not any(line.startswith("SILENT") for line in lines)


def test_a_filter_that_is_set_is_not_recommended(tmp_path):
    values = {"0.mp4": {"cancelled": True}}
    for word, times in (("filters.min_rms_db=null", 1), ("filters.min_rms_db=-60", 0)):
        _, lines = finished(tmp_path / word, [source(0)], word, values=values)
        (line,) = [line for line in lines if line.startswith("CANCELLED: in 1 of 1 segments")]
        assert line.count("filters.min_rms_db=-60") == times


def test_a_source_with_a_label_in_one_stretch_is_not_one_without(tmp_path):
    sources = [source(0, "rain"), source(0, "", start=10.0), source(1, ""), source(1, "", start=10.0)]
    manifest, lines = finished(tmp_path, sources, "data.labels=[rain]")
    assert manifest["counts"]["sources_without_label"] == 1
    assert any(line.startswith("NO LABEL: 1 of 2 sources") for line in lines)


@pytest.mark.parametrize("folder", ["units", "rejects", "sources"])
def test_damaged_rows_are_named_and_no_traceback(tmp_path, folder):
    """The footer is whole, so the file can be opened."""
    config, table, records = make(tmp_path, [source(0), source(1)])
    path = Path(f"{tmp_path}/data/{folder}/000001.parquet")
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(byte ^ 0xFF for byte in content[4:40])
    path.write_bytes(content)
    with pytest.raises(DamagedShard, match=f"{folder}/000001.parquet is damaged: .*; delete that file"):
        if folder == "sources":
            read_accounts(f"{tmp_path}/data")
        elif folder == "rejects":
            read_rejects(f"{tmp_path}/data")
        else:
            finish(config, f"{tmp_path}/data", table, records)
