"""Settings of the server: texts and values alike, mistakes in a line, paths made absolute."""

import os

import pytest

from proav.errors import ConfigError
from proav.serve import settings
from proav.serve.settings import read_settings


def test_texts_of_a_command_line_equal_values_of_a_file():
    texts = {
        "num_replicas": "[1, 3]",
        "use_gpu": "false",
        "max_batch_size": "4",
        "batch_wait_seconds": "0.5",
        "checkpoint": "s3://bucket/run",
    }
    values = {
        "num_replicas": [1, 3],
        "use_gpu": False,
        "max_batch_size": 4,
        "batch_wait_seconds": 0.5,
        "checkpoint": "s3://bucket/run",
    }
    assert read_settings(texts) == read_settings(values)
    assert read_settings(texts).replica_range == (1, 3)
    names = ("clips.lan", "127.0.0.1", "::1")
    texts = "Clips.lan, 127.0.0.1,[::1]", "[clips.lan, 127.0.0.1, '::1']"
    for hosts in (*texts, ["clips.lan", "127.0.0.1", "[::1]"]):
        assert read_settings({"allowed_hosts": hosts}).allowed_hosts == names
    assert read_settings({"num_replicas": "2"}).replica_range == (2, 2)


def test_the_checkpoint_comes_from_the_argument_then_the_environment_then_the_demo(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROAV_CHECKPOINT", raising=False)
    monkeypatch.delenv("PROAV_RUNS", raising=False)
    monkeypatch.setattr(settings, "SHOWCASE_CHECKPOINT", tmp_path / "showcase" / "latest")
    assert read_settings({}).checkpoint == str(tmp_path / "runs/demo/stdit/checkpoints/latest")
    assert read_settings({}).jobs_dir == str(tmp_path / "runs/serve")
    monkeypatch.setenv("PROAV_RUNS", "s3://bucket/all")
    assert read_settings({}).jobs_dir == "s3://bucket/all/runs/serve"
    monkeypatch.setenv("PROAV_CHECKPOINT", "mine")
    assert read_settings({}).checkpoint == str(tmp_path / "mine")
    assert read_settings({"checkpoint": "~/other"}).checkpoint == os.path.expanduser("~/other")


def test_the_showcase_is_served_only_where_no_demo_was_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROAV_CHECKPOINT", raising=False)
    monkeypatch.delenv("PROAV_RUNS", raising=False)
    showcase, demo = tmp_path / "showcase" / "latest", tmp_path / "runs/demo/stdit/checkpoints/latest"
    monkeypatch.setattr(settings, "SHOWCASE_CHECKPOINT", showcase)
    showcase.parent.mkdir()
    showcase.write_text("clips-000000000008\n")
    assert read_settings({}).checkpoint == str(showcase)
    assert read_settings({"checkpoint": "mine"}).checkpoint == str(tmp_path / "mine")
    demo.parent.mkdir(parents=True)
    demo.write_text("clips-000000000016\n")
    assert read_settings({}).checkpoint == str(demo)
    flow_map = tmp_path / "runs/demo/distill/checkpoints/latest"  # makes the same clips in fewer steps
    flow_map.parent.mkdir(parents=True)
    flow_map.write_text("clips-000000000008\n")
    assert read_settings({}).checkpoint == str(flow_map)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"chekpoint": "x"}, "did you mean checkpoint?"),
        ({"zzz": "x"}, "expected one of checkpoint"),
        ({"max_batch_size": "many"}, "max_batch_size=many"),
        ({"max_batch_size": "0"}, "max_batch_size=0"),
        ({"num_replicas": "[3, 1]"}, "[MIN, MAX]"),
        ({"num_replicas": "0"}, "num_replicas=0"),
        ({"num_replicas": "[1, "}, "num_replicas=[1, "),
        ({"use_gpu": "perhaps"}, "use_gpu=perhaps"),
        ({"steps": "300"}, "above max_steps=200"),
        ({"port": "70000"}, "port=70000"),
        ({"allowed_hosts": "http://clips.lan"}, "without http:// and port"),
        ({"allowed_hosts": "clips.lan:8000"}, "without http:// and port"),
        ({"allowed_hosts": "a,,b"}, "allowed_hosts=a,,b"),
        ({"allowed_hosts": 5}, "allowed_hosts=5"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, said):
    with pytest.raises(ConfigError) as error:
        read_settings(arguments)
    assert said in str(error.value) and "\n" not in str(error.value)
