import errno
import hashlib
import os
import re
from dataclasses import replace

import pyarrow.fs as pafs
import pytest

from proav.config import Config, DataConfig
from proav.data.sources import folders
from proav.data.sources.finding import SOURCE_SCHEMA, find_sources, rows_of, segment_id, source_id
from proav.errors import UserError


def find_table(**data):
    return find_sources(Config(data=DataConfig(**data)))


def find(**data):
    return rows_of(find_table(**data))


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_ids_follow_the_documented_format():
    assert source_id("clips/a.mp4") == hashlib.sha256(b"clips/a.mp4").hexdigest()[:16]
    assert segment_id("clips/a.mp4", 10.0004) == hashlib.sha256(b"clips/a.mp4@10000").hexdigest()[:16]


def test_folder_is_searched_with_labels_from_its_first_level(tmp_path):
    touch(tmp_path / "videos", "rain/deep/b.MP4", "rain/a.webm", "c.mkv", "notes.txt", ".hidden/d.mp4")
    rows = find(sources=(str(tmp_path / "videos"),))
    assert [(row.key, row.label) for row in rows] == [
        ("videos/c.mkv", ""),
        ("videos/rain/a.webm", "rain"),
        ("videos/rain/deep/b.MP4", "rain"),
    ]


def test_moving_the_root_keeps_ids_and_splits(tmp_path):
    names = [f"{label}/{number}.mp4" for label in ("x", "y") for number in range(10)]
    touch(tmp_path / "here" / "set", *names)
    touch(tmp_path / "there" / "set", *names)
    here, there = (find_table(sources=(str(tmp_path / place / "set"),)) for place in ("here", "there"))
    assert here.drop_columns(["path"]) == there.drop_columns(["path"]) and here.schema == SOURCE_SCHEMA


def test_a_label_is_one_in_either_form_and_paths_keep_their_own(tmp_path):
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    touch(tmp_path / decomposed, f"{decomposed}/a.mp4", f"{composed}/b.mp4", "dog/c.mp4")
    for root in (composed, decomposed):  # a user may type either form
        for labels in ((composed, "dog"), (decomposed, "dog"), ()):
            rows = find(sources=(str(tmp_path / root),), labels=labels)
            assert [(row.key, row.label) for row in rows] == [
                (f"{decomposed}/{decomposed}/a.mp4", composed),
                (f"{decomposed}/{composed}/b.mp4", composed),
                (f"{decomposed}/dog/c.mp4", "dog"),
            ]
            assert all((tmp_path / row.path).is_file() for row in rows)
        globs = {"*/?.mp4": 3, f"Caf[{composed[-1]}]/*": 2, f"{decomposed}*/?.mp4": 2, f"{composed}/*.mp4": 1}
        for glob, count in globs.items():
            assert len(find(sources=(f"{tmp_path}/{root}/{glob}",))) == count
        assert len(find(sources=(f"{tmp_path}/{root}/*{decomposed[-2:]}/*.mp4",))) == 2
    (row,) = find(sources=(f"{tmp_path}/{composed}/{decomposed}/a.mp4",))
    assert row.path == f"{tmp_path}/{decomposed}/{decomposed}/a.mp4"


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("train/a", "test/b"), "test, train"),
        (("Train/dog/a", "Validation/dog/b"), "Train, Validation"),
        (("train/dog/a", "train/cat/b"), "train"),
        (("valid/dog/a", "dog/b"), "valid"),
        (("val/dog/a",), "val"),
        (("train/a", "car/b"), ""),  # the vehicle
        (("dog/a", "b"), ""),
        (("a", "b"), ""),
    ],
)
def test_folders_of_splits_are_no_labels_unless_they_are_named(tmp_path, names, refused):
    touch(tmp_path / "set", *(f"{name}.mp4" for name in names))
    folder = str(tmp_path / "set")
    if not refused:
        labels = {name.split("/")[0] if "/" in name else "" for name in names}
        assert {row.label for row in find(sources=(folder,))} == labels
        return
    message = rf"the folders {refused} of data.sources would be labels.*data.layout=split/label if they are"
    for source in (folder, f"{folder}/**/*.mp4"):
        with pytest.raises(UserError, match=message):
            find(sources=(source,))
    sides = {row.path.split("/set/")[1]: row.split for row in find(sources=(folder,), layout="split/label")}
    for name in names:
        if "/" in name and name.lower().startswith(("test", "val")):
            assert sides[f"{name}.mp4"] == "validation"
    labels = sorted({name.split("/")[0] for name in names})
    assert {row.label for row in find(sources=(folder,), labels=labels)} == set(labels)


def test_the_labels_to_write_begin_with_the_splits(tmp_path):
    names = [f"a{number}" for number in range(10)]
    touch(tmp_path / "set", *(f"{name}/x.mp4" for name in (*names, "test", "val")))
    with pytest.raises(UserError, match=r"data.labels=\[test,val,a0,a1,a2,a3,a4,a5,\.\.\.\] if they are"):
        find(sources=(str(tmp_path / "set"),))
    splits = [f"{split}/x.mp4" for split in folders.SPLIT_FOLDERS] + ["Test/x.mp4"]
    touch(tmp_path / "splits", "a/x.mp4", *splits)
    with pytest.raises(UserError) as refusal:
        find(sources=(str(tmp_path / "splits"),))
    written = re.search(r"data.labels=\[(.*),\.\.\.\]", str(refusal.value))[1].split(",")
    assert len(find(sources=(str(tmp_path / "splits"),), labels=written)) == len(splits) + 1


def test_folders_of_splits_that_are_given_one_by_one(tmp_path):
    touch(tmp_path / "set", *(f"train/dog/{number}.mp4" for number in range(9)))
    touch(tmp_path / "set", "test/dog/a.mp4", "test/cat/b.mp4")
    sources = (f"{tmp_path}/set/train", f"{tmp_path}/set/test/*/*.mp4")
    touch(tmp_path / "flat", "train/a.mp4", "test/b.mp4")
    for given, they in (
        (sources, "are in"),
        ((f"{tmp_path}/flat/train/a.mp4", f"{tmp_path}/flat/test/b.mp4"), "are in"),
        ((f"{tmp_path}/set/train", f"{tmp_path}/set/test"), "are"),
    ):
        with pytest.raises(UserError, match=rf"\] {they} folders of splits.*write data.layout=split/label"):
            find(sources=given)
    rows = find(sources=sources, layout="split/label")
    sides = {(row.key.split("/")[0], row.split) for row in rows}
    assert sides == {("train", "train"), ("test", "validation")}
    assert {row.label for row in rows} == {"dog", "cat"}
    alone = find(sources=sources[:1])  # one side alone is split anew
    assert {row.split for row in alone} == {"train", "validation"}


def test_folders_of_splits_below_the_labels_are_reported(tmp_path, capsys):
    touch(tmp_path / "set", "dog/train/a.mp4", "dog/test/b.mp4", "cat/test/c.mp4")
    assert {row.label for row in find(sources=(str(tmp_path / "set"),))} == {"cat", "dog"}
    assert "sources: SPLIT NOT READ: 2 videos" in capsys.readouterr().out


def test_folders_of_splits_above_the_sources_are_reported(tmp_path, capsys):
    touch(tmp_path / "train" / "s", "train/cat/a.mp4", "Test/cat/b.mp4", "Test/dog/c.mp4", "other/d.mp4")
    there = f"{tmp_path}/train/s"  # a folder train above all sources says nothing
    for sources, layout, num_unread in (
        (("train/cat", "Test/dog"), "label", 1),
        (("train/cat", "Test/dog"), "split/label", 1),
        (("train/cat", "Test"), "split/label", 1),
        (("train/cat/a.mp4", "Test/cat/b.mp4", "Test/dog/*.mp4", "other"), "label", 2),
        (("Test/cat/b.mp4", "Test/dog/c.mp4"), "label", 0),
        (("train/cat", "other"), "label", 0),
        (("train", "Test"), "split/label", 0),  # these are read
    ):
        find(sources=tuple(f"{there}/{source}" for source in sources), layout=layout)
        out = capsys.readouterr().out
        assert (f"SPLIT NOT READ: {num_unread} entries" in out) if num_unread else ("NOT READ" not in out)


def test_files_with_other_endings_are_counted(tmp_path, capsys):
    touch(tmp_path / "set", "x/a.VOB", "x/b.3g2", "b.divx", "c.f4v", "d.dv", "e.rmvb", "f.rm")
    assert len(find(sources=(str(tmp_path / "set"),))) == 7
    assert "PASSED OVER" not in capsys.readouterr().out
    touch(tmp_path / "set", "x/g.vdo", "x/h.VDO", "notes.txt", "README", "odd.")
    assert len(find(sources=(str(tmp_path / "set"),))) == 7
    out = capsys.readouterr().out
    assert "sources: PASSED OVER: 5 files without the ending of a video (.vdo 2, . 1, .txt 1, none 1)" in out
    assert len(find(sources=(f"{tmp_path}/set/x/*", f"{tmp_path}/set/x/g.vdo"))) == 3
    assert "PASSED OVER: 2 files" in capsys.readouterr().out
    (tmp_path / "clips.csv").write_text("path\nset/notes.txt\n")
    assert len(find(listing=str(tmp_path / "clips.csv"))) == 1


def test_a_name_without_a_dot_is_no_video(tmp_path):
    touch(tmp_path / "set", "ts", "mov", "x.d/ts", "x.d/a.ts")
    assert [row.key for row in find(sources=(str(tmp_path / "set"),))] == ["set/x.d/a.ts"]
    assert not folders.is_video("ts") and folders.is_video("a.TS")


def test_a_file_at_the_top_is_not_looked_for_in_the_current_folder(tmp_path, monkeypatch):
    """Every path is made to look like a file, because a test may not write to the top folder."""
    info = pafs.FileInfo("clip.mp4", pafs.FileType.File, size=1)
    monkeypatch.setattr(folders.storage, "file_info", lambda path: info)
    monkeypatch.chdir(tmp_path)
    for source, path in (
        ("/clip.mp4", "/clip.mp4"),
        ("file:///clip.mp4", "/clip.mp4"),
        ("file://clip.mp4", f"{tmp_path}/clip.mp4"),
        ("clip.mp4", f"{tmp_path}/clip.mp4"),
        ("sub/clip.mp4", f"{tmp_path}/sub/clip.mp4"),
        ("s3://bucket/clip.mp4", "s3://bucket/clip.mp4"),
    ):
        (row,) = find(sources=(source,))
        assert row.path == path


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("a[!0]*.mp4", "a1.mp4 a].mp4 a!.mp4 a-.mp4 a\\.mp4 a[!].mp4 a[.mp4"),  # not a/x.mp4
        ("a[^0]*.mp4", "a1.mp4 a].mp4 a!.mp4 a-.mp4 a\\.mp4 a[!].mp4 a[.mp4"),
        ("a[+-9]*.mp4", "a0.mp4 a1.mp4 a-.mp4"),  # the range spans /
        ("a[0-1].mp4", "a0.mp4 a1.mp4"),
        ("a[]0].mp4", "a].mp4 a0.mp4"),
        ("a[!]0].mp4", "a1.mp4 a!.mp4 a-.mp4 a\\.mp4 a[.mp4"),
        ("a[0-].mp4", "a0.mp4 a-.mp4"),
        ("a[\\].mp4", "a\\.mp4"),
        ("a[[].mp4", "a[.mp4"),
        ("?[!].mp4", "a[!].mp4"),  # no ] closes the set
        ("[a]/[x].mp4", "a/x.mp4"),
    ],
)
def test_sets_in_globs(tmp_path, glob, names):
    there = ["a0", "a1", "a]", "a!", "a-", "a\\", "a[!]", "a[", "a/x"]
    touch(tmp_path / "v", *(f"{name}.mp4" for name in there))
    rows = find(sources=(f"{tmp_path}/v/{glob}",))
    assert sorted(row.key for row in rows) == sorted(f"v/{name}" for name in names.split())


def test_a_range_that_runs_backwards_is_named(tmp_path):
    touch(tmp_path / "v", "a0.mp4")
    with pytest.raises(UserError, match=r"data.sources=.*a\[9-0\].mp4: bad character range 9-0; expected"):
        find(sources=(f"{tmp_path}/v/a[9-0].mp4",))


def test_globs_and_single_files(tmp_path):
    touch(tmp_path / "set", "x/a.mp4", "x/deep/b.mp4", "y/c.mp4", "y/c.txt", "odd.bin")
    assert [row.key for row in find(sources=(f"{tmp_path}/set/*/*.mp4",))] == ["set/x/a.mp4", "set/y/c.mp4"]
    assert [row.key for row in find(sources=(f"{tmp_path}/set/**/*.mp4",))] == [
        "set/x/a.mp4",
        "set/x/deep/b.mp4",
        "set/y/c.mp4",
    ]
    assert [row.key for row in find(sources=(f"{tmp_path}/set/[!x]/?.mp4",))] == ["set/y/c.mp4"]
    assert [row.key for row in find(sources=(f"{tmp_path}/set/odd.bin",))] == ["set/odd.bin"]


def test_the_same_file_below_two_roots_appears_once(tmp_path):
    touch(tmp_path / "set", "x/a.mp4", "x/b.mp4")
    rows = find(
        sources=(
            str(tmp_path / "set"),
            str(tmp_path / "set" / "x"),
            f"{tmp_path}/set/x/*.mp4",
            str(tmp_path / "set"),
        )
    )
    assert [row.key for row in rows] == ["set/x/a.mp4", "set/x/b.mp4"]


def test_order_does_not_depend_on_the_order_of_sources(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/b.mp4")
    assert find(sources=(str(tmp_path / "one"), str(tmp_path / "two"))) == find(
        sources=(str(tmp_path / "two"), str(tmp_path / "one"))
    )


def test_split_is_by_hash_and_both_sides_get_a_source(tmp_path):
    touch(tmp_path / "set", *[f"{number}.mp4" for number in range(40)])
    rows = find(sources=(str(tmp_path / "set"),), validation_fraction=0.25)
    assert all((row.split == "validation") == (int(row.id, 16) / 16**16 < 0.25) for row in rows)
    few = find(sources=tuple(row.path for row in rows if row.split == "train")[:3], validation_fraction=0.01)
    assert [row.split for row in sorted(few, key=lambda row: row.id)] == ["validation", "train", "train"]
    assert {row.split for row in find(sources=(str(tmp_path / "set"),), validation_fraction=0.0)} == {"train"}


def test_listing_with_every_column(tmp_path):
    listing = tmp_path / "set" / "clips.csv"
    touch(tmp_path / "set", "a.mp4", "b.mp4")
    listing.write_text(
        "path,start_seconds,end_seconds,labels,split,licence\n"
        "a.mp4,0,10,rain;wind,train,CC0\na.mp4,10,20.5,wind,,CC0\n"
        "b.mp4,,,,validation,\n/else/c.mp4,,,wind,,\n"
    )
    rows = find(listing=str(listing))
    assert [(row.key, row.start_seconds, row.end_seconds, row.label, row.split) for row in rows] == [
        ("/else/c.mp4", 0.0, None, "wind", "train"),
        ("set/a.mp4", 0.0, 10.0, "rain", "train"),
        ("set/a.mp4", 10.0, 20.5, "wind", "train"),
        ("set/b.mp4", 0.0, None, "", "validation"),
    ]
    assert rows[1].id == rows[2].id == source_id("set/a.mp4")


def test_vocabulary_chooses_among_labels(tmp_path):
    listing = tmp_path / "clips.csv"
    listing.write_text("path,labels\na.mp4,speech;rain\nb.mp4,speech\n")
    assert [row.label for row in find(listing=str(listing), labels=("rain",))] == ["rain", ""]
    with pytest.raises(UserError, match=r"found: rain, speech"):
        find(listing=str(listing), labels=("piano",))


def test_parquet_listing(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"path": ["a.mp4"], "labels": [["rain", "wind"]], "end_seconds": [4.0]}),
        tmp_path / "clips.parquet",
    )
    (row,) = find(listing=str(tmp_path / "clips.parquet"))
    assert (row.label, row.labels, row.end_seconds) == ("rain", ("rain", "wind"), 4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,labels\na.mp4,x\n", "no column path; found file, labels"),
        ("path,split\na.mp4,valid\n", "did you mean validation"),
        ("path,start_seconds\na.mp4,soon\n", "row 1: start_seconds='soon'"),
        ("path,start_seconds,end_seconds\na.mp4,3,2\n", "end_seconds=2 is not after start_seconds=3"),
        ("path\n\n", "has no rows"),
        ("path,start_seconds,end_seconds\na.mp4,0,10\na.mp4,5,\n", "do not overlap"),
        ("path,start_seconds,end_seconds,split\na.mp4,0,10,train\na.mp4,10,20,validation\n", "one side only"),
    ],
)
def test_mistakes_in_a_listing_are_named(tmp_path, text, message):
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        find(listing=str(tmp_path / "clips.csv"))


def test_mistakes_in_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "texts", "a.txt", "b.txt")
    touch(tmp_path, "one/set/a.mp4", "two/set/a.mp4")
    for sources, message in [
        ((), r"data.sources=\[FOLDER\]"),
        ((str(tmp_path / "absent"),), "no such file or folder"),
        ((str(tmp_path / "empty"),), "the folder is empty"),
        ((str(tmp_path / "texts"),), "2 other files are there; looked for .*mp4"),
        ((f"{tmp_path}/texts/*",), "no videos match"),
        ((f"{tmp_path}/absent/*.mp4",), "no such folder"),
        ((str(tmp_path / "one/set"), str(tmp_path / "two/set")), "would both be called set/a.mp4"),
    ]:
        with pytest.raises(UserError, match=message):
            find(sources=sources)
    with pytest.raises(UserError, match="both given"):
        find(sources=(str(tmp_path),), listing="clips.csv")
    with pytest.raises(UserError, match="no such file"):
        find(listing=str(tmp_path / "absent.csv"))


def test_repeated_sources_are_taken_once_and_counted(tmp_path, capsys):
    touch(tmp_path / "set", "x/a.mp4", "x/b.mp4")
    once = find(sources=(str(tmp_path / "set"),))
    assert find(sources=(str(tmp_path / "set"),) * 3) == once and len(once) == 2
    assert "sources: 4 rows repeat" in capsys.readouterr().out
    listing = tmp_path / "clips.csv"
    listing.write_text(
        "path,labels\n"
        + "set/x/a.mp4,rain\n" * 5
        + "set/x/a.mp4,wind\n"
        + "./set/../set/x/b.mp4,rain\nset/x/b.mp4,rain\n"
    )
    rows = find(listing=str(listing))
    assert [(row.path, row.labels) for row in rows] == [
        (f"{tmp_path}/set/x/a.mp4", ("rain", "wind")),
        (f"{tmp_path}/set/x/b.mp4", ("rain",)),
    ]
    assert "sources: 6 rows repeat" in capsys.readouterr().out


def test_links_are_followed_but_never_in_circles(tmp_path):
    touch(tmp_path / "set", "x/a.mp4")
    touch(tmp_path / "other", "b.mp4")
    (tmp_path / "set" / "x" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "x" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "broken.mp4").symlink_to(tmp_path / "absent.mp4")
    assert [row.key for row in find(sources=(str(tmp_path / "set"),))] == ["set/x/a.mp4", "set/x/there/b.mp4"]


def test_links_that_lead_nowhere_and_deleted_entries_are_left_out(tmp_path, monkeypatch):
    touch(tmp_path / "set", "x/a.mp4", "gone/b.mp4", "x/c.mp4", "x/d.mp4")
    (tmp_path / "set" / "loop").symlink_to("loop")
    (tmp_path / "set" / "x" / "through.mp4").symlink_to(tmp_path / "set" / "x" / "a.mp4" / "b.mp4")
    scandir = os.scandir

    def scan(folder):
        if str(folder).endswith("gone"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", folder)
        if str(folder).endswith("x"):
            return DeletingScan(scandir(folder), "c.mp4")
        return scandir(folder)

    monkeypatch.setattr(folders.os, "scandir", scan)
    assert [row.key for row in find(sources=(str(tmp_path / "set"),))] == ["set/x/a.mp4", "set/x/d.mp4"]


class DeletingScan:
    """Entries of a folder; the file `name` is deleted when the scan comes to it."""

    def __init__(self, entries, name):
        self.entries, self.name = entries, name

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.entries.close()

    def __iter__(self):
        for entry in self.entries:
            if entry.name == self.name:
                os.unlink(entry.path)
            yield entry


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path / "my set", "x/a.mp4", "lost+found/b.mp4")
    scandir = os.scandir

    def scan(folder):
        if str(folder).endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(folders.os, "scandir", scan)
    named = re.escape(f"cannot search {tmp_path}/my set/lost+found: Permission denied; expected that all")
    typed = re.escape(f"type: chmod -R a+rX '{tmp_path}/my set/lost+found'")
    with pytest.raises(UserError, match=f"{named}.*{typed}"):
        find(sources=(str(tmp_path / "my set"),))


def test_names_that_are_not_utf_8_are_left_out_and_reported(tmp_path, capsys):
    touch(tmp_path / "set", "a.mp4", "mü sik.mp4")
    (tmp_path / "set" / b"b\xff.mp4".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    assert [row.key for row in find(sources=(str(tmp_path / "set"),))] == ["set/a.mp4", "set/mü sik.mp4"]
    assert "LEFT OUT: 1 files whose names are not UTF-8" in capsys.readouterr().out


def test_remote_folders_globs_and_listings():
    import fsspec

    files = fsspec.filesystem("memory")
    try:
        for name in ("rain/a.mp4", "wind/b.mp4", "wind/.hidden.mp4", "notes.txt"):
            files.pipe(f"/proav-sources/set/{name}", b"xyz")
        files.pipe("/proav-sources/set/clips.csv", b"path,labels\nrain/a.mp4,drizzle\n")
        rows = find(sources=("memory://proav-sources/set",))
        assert [(row.key, row.path, row.label, row.num_bytes) for row in rows] == [
            ("set/rain/a.mp4", "memory://proav-sources/set/rain/a.mp4", "rain", 3),
            ("set/wind/b.mp4", "memory://proav-sources/set/wind/b.mp4", "wind", 3),
        ]
        assert find(sources=("memory://proav-sources/set/*/b.mp4",)) == [replace(rows[1], split="train")]
        (row,) = find(listing="memory://proav-sources/set/clips.csv")
        assert (row.key, row.path, row.label) == (
            "set/rain/a.mp4",
            "memory://proav-sources/set/rain/a.mp4",
            "drizzle",
        )
    finally:
        files.rm("/proav-sources", recursive=True)
