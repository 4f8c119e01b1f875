import json
from pathlib import Path

import numpy as np
import pytest

from proav.config import Config, DataConfig
from proav.data.sources.finding import find_sources, rows_of, segment_id, source_id
from proav.data.store.shards import SegmentStore, read_rejects
from proav.errors import UserError
from proav.media.container import Clip
from tests.synthetic_clips import make_clip, prepare
from tests.tiny import tiny_config

AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=3, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
--aaaaaaaaA, 30.000, 40.000, "/m/rain,/m/speech"
_bbbbbbbbbB, 0.000, 8.500, "/m/speech"
Ycccccccc-C, 2.500, 12.500, "/t/dd1,/m/rain"
ddddddddddD, 100.000, 110.000, "/m/rain"
"""
ONTOLOGY = [
    {"id": "/m/rain", "name": "Rain"},
    {"id": "/m/speech", "name": "Male speech, man speaking"},
    {"id": "/t/dd1", "name": "Wind; breeze"},
]
VGGSOUND = (
    "eeeeeeeeeeE,0,raining,test\neeeeeeeeeeE,188,wind noise,test\n"
    'ffffffffffF,7,"heart sounds, heartbeat",train\n'
)
COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


@pytest.fixture
def folder(tmp_path):
    """Listings beside an empty folder for videos."""
    (tmp_path / "eval_segments.csv").write_text(AUDIOSET)
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    (tmp_path / "vggsound.csv").write_text(VGGSOUND)
    (tmp_path / "videos").mkdir()
    return tmp_path


def touch(folder, *names):
    for name in names:
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 3)


def find(folder, listing, **data):
    names = [listing] if isinstance(listing, str) else listing
    data = {"videos": str(folder / "videos"), "ontology": str(folder / "ontology.json"), **data}
    return find_sources(Config(data=DataConfig(listing=[str(folder / name) for name in names], **data)))


def by_id(table):
    return {row.key.removeprefix("youtube/"): row for row in rows_of(table)}


def test_audioset_has_names_of_the_ontology_and_the_split_of_its_file(folder):
    rows = by_id(find(folder, "eval_segments.csv"))
    assert (
        rows["--aaaaaaaaA"].labels == ("Rain", "Male speech, man speaking")
        and rows["--aaaaaaaaA"].label == "Rain"
    )
    assert rows["Ycccccccc-C"].labels == ("Wind; breeze", "Rain")
    assert {row.split for row in rows.values()} == {"validation"}
    assert (rows["_bbbbbbbbbB"].start_seconds, rows["_bbbbbbbbbB"].end_seconds) == (0.0, 8.5)
    (folder / "eval_segments.csv").rename(folder / "unbalanced_train_segments.csv")
    rows = by_id(find(folder, "unbalanced_train_segments.csv", labels=("Male speech, man speaking",)))
    assert {row.split for row in rows.values()} == {"train"}
    assert [rows[name].label for name in sorted(rows)] == [
        "Male speech, man speaking",
        "",
        "Male speech, man speaking",
        "",
    ]


def test_ontology_as_csv(folder):
    text = "index,mid,display_name\n" + "".join(
        f'{number},{entry["id"]},"{entry["name"]}"\n' for number, entry in enumerate(ONTOLOGY)
    )
    (folder / "class_labels_indices.csv").write_text(text)
    assert find(folder, "eval_segments.csv", ontology=str(folder / "class_labels_indices.csv")) == find(
        folder, "eval_segments.csv"
    )


def test_names_that_files_have(folder, capsys):
    """A cut clip is preferred to its whole video, and its name tells where in the video it begins.

    The names carry the start in each of the ways in use.
    """
    touch(
        folder,
        "a/--aaaaaaaaA_000030.mp4",
        "_bbbbbbbbbB_0_8500.mkv",
        "YYcccccccc-C.webm",
        "ddddddddddD_100000_110000.mp4",
    )
    touch(
        folder,
        "ddddddddddD_99.mp4",
        "z/ddddddddddD_100.000.mp4",
        "ddddddddddD.txt",
        "other.mp4",
        "--aaaaaaaaA.mp4",
    )
    table = find(folder, "eval_segments.csv")
    rows = by_id(table)
    assert {
        name: (row.path.removeprefix(f"{folder}/videos/"), row.file_start_seconds, row.num_bytes)
        for name, row in rows.items()
    } == {
        "--aaaaaaaaA": ("a/--aaaaaaaaA_000030.mp4", 30.0, 3),
        "_bbbbbbbbbB": ("_bbbbbbbbbB_0_8500.mkv", 0.0, 3),
        "Ycccccccc-C": ("YYcccccccc-C.webm", 0.0, 3),
        "ddddddddddD": ("z/ddddddddddD_100.000.mp4", 100.0, 3),
    }
    assert "4 of 4 listed clips are in" in capsys.readouterr().out
    for start in ("30", "00030", "30.0", "30.000", "30_40", "30.000_40.000", "30000", "30000_40000"):
        (path,) = (folder / "videos" / "a").glob("--*")
        path.rename(path.with_name(f"--aaaaaaaaA_{start}.mp4"))
        assert by_id(find(folder, "eval_segments.csv"))["--aaaaaaaaA"].file_start_seconds == 30.0
    assert find(folder, "eval_segments.csv").column("digest") == table.column("digest")


def test_a_name_without_a_start_is_a_whole_video_unless_set_otherwise(folder):
    touch(folder, "--aaaaaaaaA.mp4", "Y_bbbbbbbbbB.mp4")
    rows = by_id(find(folder, "eval_segments.csv"))
    assert [rows[name].file_start_seconds for name in ("--aaaaaaaaA", "_bbbbbbbbbB")] == [0.0, 0.0]
    rows = by_id(find(folder, "eval_segments.csv", named_by_id="cut"))
    assert [rows[name].file_start_seconds for name in ("--aaaaaaaaA", "_bbbbbbbbbB", "ddddddddddD")] == [
        30.0,
        0.0,
        0.0,
    ]


def test_cut_files_named_by_id_do_not_tell_which_of_two_stretches_they_hold(folder, capsys):
    touch(folder, "eeeeeeeeeeE.mp4", "ffffffffffF.mp4")
    rows = rows_of(find(folder, "vggsound.csv", named_by_id="cut"))
    assert "2 clips NOT TAKEN" in capsys.readouterr().out
    assert [row.num_bytes for row in rows] == [0, 0, 3]
    paths = [Path(row.path) for row in rows]
    assert [path.name for path in paths[:2]] == ["eeeeeeeeeeE_0.mp4", "eeeeeeeeeeE_188.mp4"]
    assert [path.exists() for path in paths] == [False, False, True]
    assert [row.file_start_seconds for row in rows] == [0.0, 188.0, 7.0]
    assert [row.num_bytes for row in rows_of(find(folder, "vggsound.csv"))] == [3, 3, 3]
    assert len(rows_of(find(folder, ["vggsound.csv", "vggsound.csv"]))) == 3


def test_a_file_that_may_hold_another_stretch_is_not_read(folder, tmp_path):
    make_clip(3, seconds=5.0).save(str(folder / "videos" / "eeeeeeeeeeE.mp4"))
    make_clip(4, seconds=5.0).save(str(folder / "videos" / "ffffffffffF.mp4"))
    words = (f"data.listing={folder}/vggsound.csv", f"data.videos={folder}/videos", "data.named_by_id=cut")
    manifest = prepare(tiny_config(f"run_dir={tmp_path}/run", *words))
    rejects = {(row["source"], row["reason"]) for row in read_rejects(f"{tmp_path}/run/data").to_pylist()}
    assert ("youtube/eeeeeeeeeeE", "not_found") in rejects and manifest["rejects_by_reason"]["not_found"] == 2
    assert {row["source"] for row in SegmentStore(f"{tmp_path}/run/data").rows} == {"youtube/ffffffffffF"}


def test_what_is_listed_and_not_there_stays_a_row(folder, capsys):
    touch(folder, "--aaaaaaaaA_30.mp4")
    rows = by_id(find(folder, "eval_segments.csv"))
    assert len(rows) == 4 and rows["ddddddddddD"].path == f"{folder}/videos/ddddddddddD.mp4"
    assert "1 of 4 listed clips are in" in capsys.readouterr().out
    (folder / "videos" / "--aaaaaaaaA_30.mp4").unlink()
    find(folder, "eval_segments.csv")
    assert "NONE of the clips is there" in capsys.readouterr().out


def test_vggsound(folder):
    touch(folder, "eeeeeeeeeeE_000188.mp4")
    rows = rows_of(find(folder, "vggsound.csv"))
    assert [
        (row.key, row.start_seconds, row.end_seconds, row.label, row.split, row.file_start_seconds)
        for row in rows
    ] == [
        ("youtube/eeeeeeeeeeE", 0.0, 10.0, "raining", "validation", 0.0),
        ("youtube/eeeeeeeeeeE", 188.0, 198.0, "wind noise", "validation", 188.0),
        ("youtube/ffffffffffF", 7.0, 17.0, "heart sounds, heartbeat", "train", 0.0),
    ]
    assert rows[0].id == rows[1].id == source_id("youtube/eeeeeeeeeeE")


def test_comments_at_the_head_do_not_make_a_listing_audiosets(folder):
    plain = find(folder, "vggsound.csv")
    (folder / "vggsound.csv").write_text("# VGGSound, of May\n\n# id,start,label,split\n" + VGGSOUND)
    assert find(folder, "vggsound.csv") == plain
    aist = "gBR_sBM_cAll_d04_mBR0_ch01\n"
    (folder / "crossmodal_train.txt").write_text("# AIST++\n" + aist)
    assert [row.label for row in rows_of(find(folder, "crossmodal_train.txt"))] == ["Break"]
    plain = find(folder, "eval_segments.csv")
    lines = [line for line in AUDIOSET.splitlines(True) if not line.startswith("#")]
    (folder / "eval_segments.csv").write_text("".join(lines))
    assert find(folder, "eval_segments.csv") == plain


def test_an_ontology_whose_commas_cut_names_is_refused(folder):
    text = "index,mid,display_name\n0,/m/rain,Rain\n1,/m/speech,Male speech, man speaking\n"
    (folder / "names.csv").write_text(text)
    with pytest.raises(UserError, match="names.csv has more cells than columns at /m/speech; expected"):
        find(folder, "eval_segments.csv", ontology=str(folder / "names.csv"))


def test_labels_of_listings_are_one_in_either_form(folder):
    (folder / "vggsound.csv").write_text(f"eeeeeeeeeeE,0,{DECOMPOSED},test\nffffffffffF,7,{COMPOSED},train\n")
    rows = rows_of(find(folder, "vggsound.csv", labels=(DECOMPOSED,)))
    assert {row.labels for row in rows} == {(COMPOSED,)}
    (folder / "clips.csv").write_text(f"path,labels\na.mp4,dog;{DECOMPOSED}\nb.mp4,{COMPOSED};{DECOMPOSED}\n")
    assert [row.labels for row in rows_of(find(folder, "clips.csv"))] == [("dog", COMPOSED), (COMPOSED,)]
    ontology = [{**entry, "name": DECOMPOSED} for entry in ONTOLOGY]
    (folder / "ontology.json").write_text(json.dumps(ontology))
    assert by_id(find(folder, "eval_segments.csv"))["ddddddddddD"].label == COMPOSED


def test_paths_are_found_in_either_form_and_keep_their_own(folder):
    touch(folder, f"{DECOMPOSED}/a {DECOMPOSED}.mp4", f"{COMPOSED}.mp4", f"{DECOMPOSED}.mp4")
    paths = [f"{COMPOSED}/a {COMPOSED}.mp4", f"{COMPOSED}.mp4", f"{DECOMPOSED}.mp4"]
    paths.append(f"{COMPOSED}/absent {COMPOSED}.mp4")
    (folder / "clips.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))
    rows = rows_of(find(folder, "clips.csv"))
    assert {row.path.removeprefix(f"{folder}/videos/") for row in rows} == {
        f"{DECOMPOSED}/a {DECOMPOSED}.mp4",
        f"{COMPOSED}.mp4",
        f"{DECOMPOSED}.mp4",
        f"{DECOMPOSED}/absent {COMPOSED}.mp4",
    }
    assert all(row.key == row.path.removeprefix(f"{folder}/") for row in rows)
    (folder / "videos").rename(folder / DECOMPOSED)
    (folder / "clips.csv").rename(folder / f"{DECOMPOSED}.csv")
    moved = rows_of(find(folder, f"{COMPOSED}.csv", videos=str(folder / COMPOSED)))
    assert len(moved) == len(rows) and all(row.path.startswith(f"{folder}/{DECOMPOSED}/") for row in moved)


def test_rows_that_are_listed_twice_are_taken_once_and_counted(folder, capsys):
    whole = find(folder, "eval_segments.csv")
    (folder / "eval_again.csv").write_text(AUDIOSET + '--aaaaaaaaA, 30.000, 40.000, "/t/dd1"\n')
    twice = find(folder, ["eval_segments.csv", "eval_again.csv", "eval_segments.csv"])
    assert twice.num_rows == whole.num_rows == 4
    assert "sources: 9 rows repeat a stretch" in capsys.readouterr().out
    rows = by_id(twice)
    assert rows["--aaaaaaaaA"].labels == ("Rain", "Male speech, man speaking", "Wind; breeze")
    assert rows["ddddddddddD"] == by_id(whole)["ddddddddddD"]


def test_listings_that_contradict_each_other(folder, capsys):
    vggsound = "--aaaaaaaaA,35,raining,test\n--aaaaaaaaA,40,raining,test\nddddddddddD,0,raining,train\n"
    (folder / "vggsound.csv").write_text(vggsound)
    listings = ["eval_segments.csv", "vggsound.csv"]
    with pytest.raises(
        UserError,
        match="ddddddddddD.mp4 is listed for validation and for train; "
        "expected a source on one side only.*conflicts=first",
    ):
        find(folder, listings)
    (folder / "vggsound.csv").write_text(vggsound.replace("train", "test"))
    with pytest.raises(
        UserError, match=r"--aaaaaaaaA.mp4 is listed from 30 s to 40 s and again from 35 s; .*conflicts=first"
    ):
        find(folder, listings)
    (folder / "vggsound.csv").write_text(vggsound)
    rows = rows_of(find(folder, listings, conflicts="first"))
    assert [
        (row.key[8:], row.start_seconds) for row in rows if row.key[8:] in ("--aaaaaaaaA", "ddddddddddD")
    ] == [
        ("--aaaaaaaaA", 30.0),
        ("--aaaaaaaaA", 40.0),
        ("ddddddddddD", 100.0),
    ]
    out = capsys.readouterr().out
    assert (
        "1 rows LEFT OUT: their video is listed for the other split" in out
        and "1 rows LEFT OUT: they overlap" in out
    )
    rows = rows_of(find(folder, listings[::-1], conflicts="first"))
    assert [
        (row.key[8:], row.start_seconds, row.split)
        for row in rows
        if row.key[8:] in ("--aaaaaaaaA", "ddddddddddD")
    ] == [
        ("--aaaaaaaaA", 35.0, "validation"),
        ("ddddddddddD", 0.0, "train"),
    ]


def test_all_but_the_first_of_a_chain_of_overlaps(folder):
    # 20, 0 and 31 stay; 5 overlaps 0, 12 overlaps 20, and 28 overlaps 20
    starts = [20, 0, 5, 12, 31, 28]
    (folder / "vggsound.csv").write_text("".join(f"eeeeeeeeeeE,{start},raining,test\n" for start in starts))
    rows = rows_of(find(folder, "vggsound.csv", conflicts="first"))
    assert [row.start_seconds for row in rows] == [0.0, 20.0, 31.0]
    assert len({segment_id(row.key, row.start_seconds) for row in rows}) == 3


def test_plain_tables_may_lie_elsewhere_than_their_videos(folder):
    (folder / "lists").mkdir()
    (folder / "lists" / "one.csv").write_text("path,labels\nx/a.mp4,rain\n")
    (folder / "lists" / "two.csv").write_text("path,labels\nx/a.mp4,wind\nx/b.mp4,wind\n")
    rows = rows_of(find(folder, ["lists/one.csv", "lists/two.csv"]))
    assert [(row.key, row.path, row.labels) for row in rows] == [
        ("videos/x/a.mp4", f"{folder}/videos/x/a.mp4", ("rain", "wind")),
        ("videos/x/b.mp4", f"{folder}/videos/x/b.mp4", ("wind",)),
    ]


def test_a_listed_path_may_be_an_address_of_a_file(folder):
    (folder / "clips.csv").write_text(f"path\nfile://{folder}/videos/a.mp4\nfile:///far/b.mp4\nc.mp4\n")
    paths = {row.key: row.path for row in rows_of(find(folder, "clips.csv"))}
    near = {f"videos/{name}": f"{folder}/videos/{name}" for name in ("a.mp4", "c.mp4")}
    assert paths == near | {"/far/b.mp4": "/far/b.mp4"}


def test_landscape_has_folders_of_splits_and_of_classes(folder):
    touch(
        folder,
        "train/explosion/explosion_1_0_0.mp4",
        "train/wind_noise/wind_noise_4_2_1.mp4",
        "test/explosion/explosion_9_0_0.mp4",
    )
    config = Config(data=DataConfig(sources=[str(folder / "videos")], layout="split/label"))
    assert [(row.key, row.label, row.split) for row in rows_of(find_sources(config))] == [
        ("videos/test/explosion/explosion_9_0_0.mp4", "explosion", "validation"),
        ("videos/train/explosion/explosion_1_0_0.mp4", "explosion", "train"),
        ("videos/train/wind_noise/wind_noise_4_2_1.mp4", "wind_noise", "train"),
    ]
    config = Config(data=DataConfig(sources=[str(folder / "videos" / "train")], layout="split/label"))
    assert [(row.key, row.label) for row in rows_of(find_sources(config))] == [
        ("train/explosion/explosion_1_0_0.mp4", "explosion"),
        ("train/wind_noise/wind_noise_4_2_1.mp4", "wind_noise"),
    ]


def test_aist_names_its_genres_and_all_cameras_of_a_dance_are_on_one_side(folder):
    names = [
        f"gBR_sBM_c{camera:02d}_d04_mBR{music}_ch01.mp4" for camera in range(1, 10) for music in range(6)
    ]
    touch(folder, *names, "crop/gLH_sFM_c01_d16_mLH4_ch09_crop.mp4")
    config = Config(data=DataConfig(sources=[str(folder / "videos")], layout="aist", validation_fraction=0.3))
    rows = rows_of(find_sources(config))
    assert {row.label for row in rows} == {"Break", "LA style Hip-hop"} and {row.split for row in rows} == {
        "train",
        "validation",
    }
    for music in range(6):
        assert len({row.split for row in rows if f"mBR{music}" in row.key}) == 1
    touch(folder, "dance.mp4")
    with pytest.raises(
        UserError, match=r"dance.mp4 .* is not named as AIST\+\+ names its videos.*data.layout=label"
    ):
        find_sources(config)


def test_aist_split_files(folder, capsys):
    touch(
        folder,
        "gBR_sBM_c01_d04_mBR0_ch01.mp4",
        "gBR_sBM_c02_d04_mBR0_ch01.mp4",
        "gPO_sBM_c01_d10_mPO1_ch02.mp4",
        "gPO_sBM_c01_d10_mPO1_ch03.mp4",
    )
    (folder / "crossmodal_train.txt").write_text("gBR_sBM_cAll_d04_mBR0_ch01\ngKR_sBM_cAll_d28_mKR2_ch01\n")
    (folder / "crossmodal_test.txt").write_text("gPO_sBM_cAll_d10_mPO1_ch02\n")
    rows = rows_of(find(folder, ["crossmodal_train.txt", "crossmodal_test.txt"]))
    assert [(row.key, row.label, row.split) for row in rows] == [
        ("videos/gBR_sBM_c01_d04_mBR0_ch01.mp4", "Break", "train"),
        ("videos/gBR_sBM_c02_d04_mBR0_ch01.mp4", "Break", "train"),
        ("videos/gKR_sBM_cAll_d28_mKR2_ch01.mp4", "Krump", "train"),
        ("videos/gPO_sBM_c01_d10_mPO1_ch02.mp4", "Pop", "validation"),
    ]
    assert "1 of the 2 performances" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("eval_segments.csv", AUDIOSET + "-eeeeeeeeeE, 3.000, 13.000\n", r"line 8: 3 fields; expected 4"),
        (
            "eval_segments.csv",
            AUDIOSET + 'short, 3.000, 13.000, "/m/rain"\n',
            r"line 8: 'short' is no video id; expected 11",
        ),
        (
            "eval_segments.csv",
            AUDIOSET + '-eeeeeeeeeE, 3.000, 3.000, "/m/rain"\n',
            "end_seconds=3 is not after start_seconds=3",
        ),
        (
            "eval_segments.csv",
            AUDIOSET + '-eeeeeeeeeE, 3.000, 13.000, "/m/0zzz"\n',
            r"line 8: the label '/m/0zzz' is not among the 3 of data.ontology",
        ),
        ("eval_segments.csv", "# nothing\n", "has no rows; expected one row a clip at least"),
        (
            "vggsound.csv",
            VGGSOUND + "ggggggggggG,1,train\n",
            r'line 4: 3 fields; expected 4 fields: video id, start in seconds, "label", train or test',
        ),
        ("vggsound.csv", VGGSOUND + "ggggggggggG,1,a, b,train\n", "line 4: 5 fields"),
        ("vggsound.csv", VGGSOUND + "ggggggggggG,1,rain,valid\n", "line 4: the last field is 'valid'"),
        (
            "vggsound.csv",
            VGGSOUND + "ggggggggggG,-1,rain,test\n",
            "line 4: start_seconds='-1'; expected seconds from 0 up",
        ),
        (  # without its end, the quote would swallow the rows up to the next one
            "vggsound.csv",
            'ggggggggggG,1,"rain,test\n' + VGGSOUND,
            "expected CSV in which quotes are closed",
        ),
        ("vggsound.csv", VGGSOUND + 'ggggggggggG,1,rain,"train\n', "expected CSV in which quotes are closed"),
    ],
)
def test_mistakes_are_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        find(folder, name)


def test_what_a_format_needs_is_named(folder):
    with pytest.raises(UserError, match="names videos without their paths; add data.videos=FOLDER"):
        find(folder, "eval_segments.csv", videos=None)
    with pytest.raises(
        UserError, match=r"labels are ids such as /m/09x0r; add data.ontology=FILE.*ontology.json"
    ):
        find(folder, "eval_segments.csv", ontology=None)
    with pytest.raises(UserError, match="data.ontology: no such file: absent.json"):
        find(folder, "eval_segments.csv", ontology="absent.json")
    (folder / "labels.csv").write_text('index,mid,display_name\n0,/m/rain,"Rain\n1,/m/speech,"Speech"\n')
    with pytest.raises(UserError, match=r"cannot read data.ontology=.*labels.csv: Error .*; expected"):
        find(folder, "eval_segments.csv", ontology=str(folder / "labels.csv"))
    (folder / "ontology.json").write_text('[{"id": "/m/rain"}]')
    with pytest.raises(
        UserError, match=r"cannot read data.ontology=.*ontology.json: KeyError 'name'; expected"
    ):
        find(folder, "eval_segments.csv")
    (folder / "ontology.json").write_text('[{"id": "/m/rain", "name": null}]')
    with pytest.raises(UserError, match=r"cannot read data.ontology=.*ontology.json: AttributeError"):
        find(folder, "eval_segments.csv")
    with pytest.raises(UserError, match="data.videos=.*absent: no such folder"):
        find(folder, "vggsound.csv", videos=str(folder / "absent"))
    (folder / "vggsound.csv").write_bytes(b"eeeeeeeeeeE,0,\xff,test\n")
    with pytest.raises(UserError, match="cannot read data.listing=.*expected text in UTF-8"):
        find(folder, "vggsound.csv", listing_format="vggsound")
    (folder / "clips.parquet").write_bytes(b"path")
    with pytest.raises(UserError, match="cannot read data.listing=.*expected Parquet"):
        find(folder, "clips.parquet")
    with pytest.raises(UserError, match="row 3: split='eval'"):
        (folder / "clips.csv").write_text("path,split\na.mp4,train\nb.mp4,\nc.mp4,eval\n")
        find(folder, "clips.csv")


def test_cut_and_whole_videos_give_the_same_segments(folder, tmp_path):
    """Ids and times are those of the whole video, also if the file is cut. A missing file is a reject."""
    config = tiny_config(
        f"data.listing={folder}/eval_segments.csv",
        f"data.videos={folder}/videos",
        f"data.ontology={folder}/ontology.json",
    )
    text = AUDIOSET.splitlines()[:3] + [
        '--aaaaaaaaA, 2.000, 4.000, "/m/rain"',
        'ddddddddddD, 0.000, 10.000, "/m/rain"',
    ]
    (folder / "eval_segments.csv").write_text("\n".join(text) + "\n")
    whole = make_clip(3, seconds=5.0)
    whole.save(str(folder / "videos" / "--aaaaaaaaA.mp4"))
    found = []
    for run in ("whole", "cut"):
        if run == "cut":
            (folder / "videos" / "--aaaaaaaaA.mp4").unlink()
            Clip(whole.video[20:], whole.audio[32000:], whole.fps, whole.sample_rate).save(
                str(folder / "videos" / "--aaaaaaaaA_000002.mp4")
            )
        manifest = prepare(config.model_copy(update={"run_dir": str(tmp_path / run)}))
        assert manifest["rejects_by_reason"] == {"not_found": 1} and manifest["counts"]["sources"] == 2
        store = SegmentStore(f"{tmp_path}/{run}/data")
        found.append(
            (
                [(row["id"], row["start_seconds"], row["num_frames"]) for row in store.rows],
                store.window(0)["video"].astype(float).mean(axis=(1, 2, 3)),
            )
        )
    assert found[0][0] == found[1][0] == [(segment_id("youtube/--aaaaaaaaA", 2.0), 2.0, 10)]
    assert np.abs(found[0][1] - found[1][1]).max() < 2.0
