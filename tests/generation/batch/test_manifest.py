"""The manifest of samples and its parts."""

import pytest

from proav import storage
from proav.errors import UserError
from proav.generation.batch.manifest import (
    SampleFiles,
    line_of,
    list_parts,
    merge_parts,
    of_one_job,
    read_samples,
    sample_path,
    stored_rows,
    write_part,
)


def test_paths():
    assert sample_path("samples", 1_234_567) == "samples/001234/001234567.mp4"


@pytest.mark.parametrize("place", ["local", "remote"])
def test_parts_are_read_with_the_manifest_and_merged_into_it(tmp_path, place):
    folder = str(tmp_path) if place == "local" else "memory://bucket/samples"
    assert read_samples(folder) == []
    manifest = storage.join(folder, "manifest.jsonl")
    storage.write_text(manifest, "".join(line_of({"index": n, "of": "old"}) for n in (1, 3, 12)))
    write_part(folder, [{"index": 10, "of": "part"}, {"index": 11, "error": "no_audio"}])
    write_part(folder, [{"index": 2, "of": "part"}, {"index": 3, "of": "part"}])
    expected = [(1, "old"), (2, "part"), (3, "part"), (10, "part"), (12, "old")]
    assert [(row["index"], row["of"]) for row in read_samples(folder)] == expected
    merge_parts(folder)
    assert list_parts(folder) == [] and not (tmp_path / "manifest").exists()
    assert [row["index"] for row, _ in stored_rows(folder)] == [1, 2, 3, 10, 11, 12]
    assert [(row["index"], row["of"]) for row in read_samples(folder)] == expected
    before = storage.file_info(manifest).mtime_ns
    merge_parts(folder)
    assert storage.file_info(manifest).mtime_ns == before
    storage.delete_folder(folder)


@pytest.mark.parametrize("line", ['{"index": 1', "[1]", "{}", '{"index": 0}'])
def test_a_damaged_manifest_is_reported(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text('{"index": 0}\n' + line + "\n")
    with pytest.raises(UserError, match="manifest.jsonl"):
        read_samples(str(tmp_path))


def test_files_are_found_by_one_listing_of_a_folder(tmp_path):
    for index in (0, 999, 1000):
        path = tmp_path / sample_path("", index).lstrip("/")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    files = SampleFiles(str(tmp_path))
    found = [index for index in (0, 1, 999, 1000, 2000) if sample_path("", index).lstrip("/") in files]
    assert found == [0, 999, 1000]


def test_samples_of_another_job_are_told_from_those_of_the_first_row():
    settings = {"task": "v2a", "steps": 4, "solver": None, "guidance_scale": 2.0, "checkpoint": "a"}
    own = [
        {"index": 0, "label": "rain", "seed": 0, "given": {"path": "a.mp4"}, **settings},
        {"index": 1, "label": None, "seed": 7, "seconds": 4, "texts": {"caption": "b"}, **settings},
        {"index": 2, **settings, "solver": "euler", "audio_guidance_scale": 2.0, "precision": "fp32"},
    ]
    others = [
        {"index": 3, **settings, "task": "joint"},
        {"index": 4, **settings, "task": "joint", "checkpoint": "b"},
        {"index": 5, **settings, "solver": "heun"},
        {"index": 6, **settings, "encoders": {"caption": "a:b"}},
    ]
    assert of_one_job([*own, *others]) == (
        own,
        {
            "task=joint instead of v2a": 2,
            "checkpoint=b instead of a": 1,
            "solver=heun instead of None": 1,
            "encoders={'caption': 'a:b'} instead of None": 1,
        },
    )
    assert of_one_job(own) == (own, {}) and of_one_job([]) == ([], {})
