"""The folders that relative paths start from, and messages that name these folders."""

import pytest

from proav.config.reading import describe_settings, load_config
from proav.data.sources.finding import find_sources
from proav.errors import UserError
from proav.models.perceptual import LPIPS
from proav.storage.paths import GIVEN, LEFT, explain_paths, with_absolute_paths


def test_what_runs_leave_follows_the_runs_folder_and_what_is_given_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "run_dir=runs/a",
        "data.sources=[videos]",
        "data.prepared=runs/b/data",
        "generate.checkpoint=runs/b/stdit/checkpoints",
        "evaluate.real=videos",
    ]
    here = with_absolute_paths(load_config(None, words))
    assert here.run_folder == f"{tmp_path}/runs/a" and here.data_folder == f"{tmp_path}/runs/b/data"
    remote = with_absolute_paths(load_config(None, words), runs="s3://bucket/all")
    assert (
        remote.run_folder == "s3://bucket/all/runs/a" and remote.data_folder == "s3://bucket/all/runs/b/data"
    )
    assert remote.generate.checkpoint == "s3://bucket/all/runs/b/stdit/checkpoints"
    assert remote.data.sources == (f"{tmp_path}/videos",) and remote.evaluate.real == f"{tmp_path}/videos"
    named = with_absolute_paths(load_config(None, ["run_dir=/mnt/a"]), runs="s3://bucket/all")
    assert named.run_folder == "/mnt/a" and named.data_folder == "/mnt/a/data"


def test_an_empty_path_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["data.prepared=''", "evaluate.weights=''", "data.sources=['',videos]", "run_dir=runs/a"]
    config = with_absolute_paths(load_config(None, words), runs="/all")
    assert config.data.prepared == "" and config.data_folder == "/all/runs/a/data"
    assert config.evaluate.weights == "" and config.data.sources == ("", f"{tmp_path}/videos")
    with pytest.raises(UserError, match="data.sources has an empty entry"):
        find_sources(config)


def test_every_path_among_the_settings_is_known():
    told_by = ("folder", "file with", "metrics.json of", "local or remote")
    named = {
        key for key, _, text in describe_settings() if any(words in text.lower() for words in told_by)
    } - {"data.layout"}
    assert named <= {*GIVEN, *LEFT}, "a new setting that names a path belongs into proav/storage/paths.py"


def message_from(folder, monkeypatch, words, fail, config_file=None):
    """What a job says of the mistake that fail(configuration) finds.

    folder: the folder in which the job is started
    monkeypatch: pytest's fixture
    words: settings of the command line
    fail: raises the mistake for a configuration
    config_file: path of the configuration file; None for no file
    """
    monkeypatch.chdir(folder)
    given = load_config(config_file, words)
    with pytest.raises(UserError) as error:
        fail(with_absolute_paths(given))
    return explain_paths(str(error.value), given, config_file=config_file)


def test_a_relative_path_of_a_file_says_what_it_is_seen_from_and_where_it_is(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "configs").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "clips.csv").write_text("path\n")
    (project / "configs" / "mine.yaml").write_text("data: {listing: clips.csv}\n")
    said = message_from(elsewhere, monkeypatch, [], find_sources, str(project / "configs" / "mine.yaml"))
    assert f"no such file: {elsewhere}/clips.csv" in said
    assert f"data.listing=clips.csv is relative to the folder where the command is typed, {elsewhere}" in said
    assert said.endswith(f"it exists below {project}: go there, or write data.listing={project}/clips.csv")


@pytest.mark.parametrize(
    ("word", "fail"),
    [
        ("data.sources=[videos]", find_sources),
        ("data.listing=clips.csv", find_sources),
        (
            "mdsa.loss.perceptual_weights=lpips.safetensors",
            lambda config: LPIPS(config.mdsa.loss.perceptual_weights),
        ),
    ],
)
def test_whatever_the_setting(tmp_path, monkeypatch, word, fail):
    said = message_from(tmp_path, monkeypatch, [word], fail)
    assert (
        f"{word.replace('[', '').replace(']', '')} is relative to the folder where the command is typed, "
        f"{tmp_path}" in said
    )


def test_nothing_is_added_where_no_relative_path_is_the_matter(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "take [1]").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["data.sources=[there,'take [1]',/nowhere/at/all,s3://bucket/videos]"])
    for message in (
        f"no video in {tmp_path}/there",
        f"no video in {tmp_path}/take [1]",
        "no such folder: /nowhere/at/all",
        "s3://bucket/videos: refused",
        "something else",
    ):
        assert explain_paths(message, config) == message
    prepared = load_config(None, ["data.prepared=runs/a/data"])
    assert "data.prepared=runs/a/data is relative to the runs folder, /all" in explain_paths(
        "nothing in /all/runs/a/data", prepared, runs="/all"
    )
