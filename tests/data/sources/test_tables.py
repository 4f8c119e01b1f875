"""Plain tables: which columns and cells are used, and which are refused."""

import math
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proav.config import Config, DataConfig
from proav.data.sources.finding import find_sources, rows_of
from proav.data.sources.strict_tables import whole_of
from proav.errors import UserError


def read(file, content, **data):
    """The rows that a table gives. It is written as this text or from these columns."""
    if isinstance(content, str):
        file.write_text(content)
    else:
        pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), file)
    return rows_of(find_sources(Config(data=DataConfig(listing=str(file), **data))))


@pytest.fixture
def csv_file(tmp_path):
    return tmp_path / "clips.csv"


@pytest.fixture
def parquet_file(tmp_path):
    return tmp_path / "clips.parquet"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,label", r"label \(did you mean labels\?\).*'data.other_columns=\[label\]'"),
        ("path,start,end", r"start \(did you mean start_seconds\?\), end \(did you mean end_seconds\?\)"),
        ("path,class", r"class \(did you mean labels\?\)"),
        ("path,Split", r"Split \(did you mean split\?\)"),
        ("path,labels,label", r"know: label; expected path"),
        ("path,colour of hair", r'know: colour of hair; .*data.other_columns=\["colour of hair"\]'),
        ("paths,labels", r"no column path; found paths, labels; did you mean path by paths\?"),
        ("filename,labels", r"no column path; .*did you mean path by filename\?"),
        ("path;labels", r"no column path; found path;labels; expected commas between"),
        ("path,labels,labels", r"two columns labels"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_that_proav_does_not_know_are_refused_with_the_nearest_name(tmp_path, kind, header, message):
    names = header.split(",")
    content = f"{header}\n{','.join('1' for _ in names)}\n"
    if kind == "parquet":
        content = pa.Table.from_arrays([pa.array(["1"])] * len(names), names=names)
    with pytest.raises(UserError, match=message):
        read(tmp_path / f"clips.{kind}", content)


def test_columns_for_people_and_those_that_are_named_are_left_unused_and_reported(
    csv_file, parquet_file, capsys
):
    rows = read(csv_file, "path,licence,labels,fps\na.mp4,CC0,dog,25\n", other_columns=("fps",))
    assert [row.labels for row in rows] == [("dog",)]
    assert f"columns of {csv_file} that are not used: licence, fps" in capsys.readouterr().out
    rows = read(csv_file, "path,labels\na.mp4,dog\n", other_columns=("path", "labels"))
    assert [row.labels for row in rows] == [()]
    columns = {"path": ["a.mp4"], "labels": ["dog"], "frames": [[[1.0, 2.0]]]}
    assert [row.labels for row in read(parquet_file, columns, other_columns=("frames",))] == [("dog",)]
    assert f"columns of {parquet_file} that are not used: frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,labels\na.mp4,engine accelerating, revving, vroom\n",
            "row 1: 4 cells for 2 columns, 'revving' is in none of them; expected quotes",
        ),
        ("path,labels\n\nb.mp4,dog\na.mp4,rain, wind\n", "row 2: 3 cells for 2 columns, 'wind'"),
        (",path,labels\n0,a.mp4,dog\n", r"row 1: '0' stands in column 1, which has no name; .*index=False"),
        ('path,labels\na.mp4,"dog\nb.mp4,cat\n', "cannot read data.listing=.*unexpected end of data"),
        ('path,labels\na.mp4,"dog\nb.mp4,"cat"\n', "cannot read data.listing="),
    ],
)
def test_no_cell_is_lost(csv_file, text, message):
    with pytest.raises(UserError, match=message):
        read(csv_file, text)


def test_empty_cells_beyond_the_columns_say_nothing(csv_file):
    rows = read(csv_file, 'path,labels,,\na.mp4,"engine, idling",,\nb.mp4,dog\nc.mp4\nd.mp4,cat,,,,\n')
    assert [row.labels for row in rows] == [("engine, idling",), ("dog",), (), ("cat",)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([0, 1, 2]), ["0", "1", "2"]),
        (pa.array([0, None, 2], pa.int8()), ["0", "", "2"]),
        (pa.array([0.0, math.nan, 2.0]), ["0", "", "2"]),
        (pa.array([0.5, None, 2.0], pa.float32()), ["0.5", "", "2"]),
        (pa.array([False, True, None]), ["False", "True", ""]),
        (pa.array([b"dog", None, b"Caf\xc3\xa9"]), ["dog", "", "Caf\u00e9"]),
        (pa.array(["dog", None, "cat"]).dictionary_encode(), ["dog", "", "cat"]),
        (pa.array([" dog ", "", " ; "]), ["dog", "", ""]),
        (pa.array([[0, 3], None, []]), ["0", "", ""]),
        (pa.array([[None, "dog"], ["", "cat"], [None]]), ["dog", "cat", ""]),
        (pa.array([[math.nan, 1.0], [0.0], [math.nan]]), ["1", "0", ""]),
    ],
)
def test_zero_and_false_are_labels_and_what_is_missing_is_none(parquet_file, labels, expected):
    rows = read(parquet_file, {"path": ["a.mp4", "b.mp4", "c.mp4"], "labels": labels})
    assert [row.label for row in rows] == expected
    assert all("" not in row.labels and "nan" not in row.labels for row in rows)


def test_class_numbers_in_csv_and_as_the_vocabulary(csv_file):
    rows = read(csv_file, "path,labels\na.mp4,0\nb.mp4,\nc.mp4,2\n", labels=(0, 2))
    assert [row.label for row in rows] == ["0", "", "2"]


def test_times_may_be_zero_or_missing(parquet_file):
    columns = {"path": ["a.mp4", "a.mp4", "b.mp4"], "start_seconds": [0, 2, None]}
    columns["end_seconds"] = [2.0, math.nan, None]
    rows = read(parquet_file, columns)
    assert [(row.start_seconds, row.end_seconds) for row in rows] == [(0.0, 2.0), (2.0, None), (0.0, None)]
    columns = {"path": ["a.mp4", "b.mp4"], "split": pa.array([None, "validation"]).dictionary_encode()}
    assert [row.split for row in read(parquet_file, columns)] == ["train", "validation"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": [None]}, "row 1: the path is empty"),
        ({"path": [math.nan]}, "row 1: the path is empty"),
        ({"path": ["a.mp4"], "labels": ["nan"]}, "row 1: labels='nan' is what programs write for"),
        ({"path": ["a.mp4"], "labels": [["dog", "NaN"]]}, "labels='NaN' is what programs write"),
        ({"path": ["a.mp4"], "labels": [{"name": "dog"}]}, "row 1: .*is dict; expected a text or a number"),
        ({"path": ["a.mp4"], "labels": [b"\xff"]}, "is not UTF-8"),
        ({"path": ["a.mp4"], "start_seconds": [False]}, "row 1: start_seconds=False; expected seconds"),
        ({"path": ["a.mp4"], "start_seconds": [1e10]}, "row 1: start_seconds=1.*from 0 up to 1,000,000,000"),
        ({"path": ["a.mp4"], "start_seconds": [[1.0]]}, "is list; expected a text or a number"),
        ({"path": ["a.mp4"], "end_seconds": [0]}, "end_seconds=0 is not after start_seconds=0"),
        ({"path": ["a.mp4"], "end_seconds": ["nan"]}, "end_seconds='nan'; expected seconds"),
        ({"path": ["a.mp4"], "split": [0]}, "split='0'; expected train, validation or nothing"),
    ],
)
def test_values_that_cannot_be_are_refused(parquet_file, columns, message):
    with pytest.raises(UserError, match=message):
        read(parquet_file, columns)


def test_a_table_that_pandas_has_filtered(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency of proav; its files are")
    frame = pandas.DataFrame({"path": ["a.mp4", "b.mp4", "c.mp4"], "labels": [3, 0, None]})[1:]
    frame.to_parquet(tmp_path / "clips.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = rows_of(find_sources(Config(data=DataConfig(listing=str(tmp_path / "clips.parquet")))))
    assert [(row.key.rsplit("/", 1)[-1], row.label) for row in rows] == [("b.mp4", "0"), ("c.mp4", "")]
    frame.to_csv(tmp_path / "clips.csv")
    with pytest.raises(UserError, match=r"column 1, which has no name; .*index=False"):
        find_sources(Config(data=DataConfig(listing=str(tmp_path / "clips.csv"))))


def test_a_table_may_begin_with_comments(csv_file):
    rows = read(csv_file, "# made by hand\n\n  # 2 clips\npath,labels\na.mp4,dog\n#b.mp4,cat\n")
    assert [(row.key.rsplit("/", 1)[-1], row.label) for row in rows] == [("#b.mp4", "cat"), ("a.mp4", "dog")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        (None, None),
        (float("nan"), None),
        ("3", 3),
        ("3.0", 3),
        (3.0, 3),
        (7, 7),
        ("0" * 30 + "3", 3),
    ],
)
def test_whole_numbers(value, expected):
    assert whole_of(value, "count", least=1) == expected


@pytest.mark.parametrize("value", ["0", "-1", "1.5", 1.5, "two", "1_000", True, 1e20, "9" * 5000])
def test_what_is_no_whole_number_is_reported(value):
    with pytest.raises(UserError, match="count=.*expected a whole number from 1 up"):
        whole_of(value, "count", least=1)
