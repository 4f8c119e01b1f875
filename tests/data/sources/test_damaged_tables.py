"""Tables that cannot be read are named, with what is wrong in them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proav.config import Config, DataConfig
from proav.data.sources.finding import find_sources
from proav.data.sources.strict_tables import TableForm, open_text, table_records
from proav.errors import UserError


def test_a_damaged_page_of_a_parquet_table_is_reported(tmp_path):
    path = tmp_path / "clips.parquet"
    table = pa.table({"path": [f"{number:06d}.mp4" for number in range(2000)]})
    pq.write_table(table, path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[200:400] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read data.listing=.*clips.parquet: .*; expected Parquet"):
        list(table_records(str(path)))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'path,labels\na.mp4,"x"y\n', "quotes are closed"), (b"path\n\xff.mp4\n", "expected text in UTF-8")],
)
def test_a_csv_table_says_what_is_wrong_in_it(tmp_path, content, said):
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read data.listing=.*clips.csv: .*{said}"):
        list(table_records(str(path)))


def test_lines_of_a_text_come_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with open_text(str(tmp_path / "a.txt")) as lines:
        assert list(lines) == ["one\n", "two\n"]


@pytest.mark.parametrize("name", ["clips.parquet", "clips.csv"])
def test_a_folder_of_files_is_no_table(tmp_path, name):
    """Spark and Ray write a table as a folder. The storage has not failed, so nothing is tried again."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "part-0").write_text("path\na.mp4\n")
    said = "clips.* is a folder; expected one CSV or Parquet file"
    with pytest.raises(UserError, match=f"data.listing=.*{said}"):
        find_sources(Config(data=DataConfig(listing=str(tmp_path / name))))
    with pytest.raises(UserError, match=f"generate.listing=.*{said}"):
        list(table_records(str(tmp_path / name), form=TableForm(setting="generate.listing")))


def test_a_text_column_of_a_parquet_table_that_is_not_utf_8_is_reported(tmp_path):
    path = tmp_path / "clips.parquet"
    texts = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\5\0\0\0"), pa.py_buffer(b"\xff.mp4"))
    pq.write_table(pa.table({"path": texts}), path)
    with pytest.raises(
        UserError, match="cannot read data.listing=.*clips.parquet: .*; expected text in UTF-8"
    ):
        list(table_records(str(path)))
