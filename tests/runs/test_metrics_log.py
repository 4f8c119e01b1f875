"""metrics.jsonl: lines beyond the checkpoint are removed, on disks and on object stores."""

import pytest

from proav import storage
from proav.runs.metrics_log import MetricsLog, read_metrics


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_resumed_curve_has_no_line_twice(tmp_path, place):
    folder = str(tmp_path / "mdsa") if place == "local" else f"memory://{tmp_path.name}/mdsa"
    log = MetricsLog(folder, resume_clips=0)
    for clips in (10, 20, 30, 40):
        log.write({"clips": clips, "loss": 1.0})
        if clips != 30:
            log.flush()
    log = MetricsLog(folder, resume_clips=30)
    assert [line["clips"] for line in read_metrics(folder)] == [10, 20, 30]
    log.write({"clips": 40, "loss": 2.0})
    log.flush()
    assert [(line["clips"], line["loss"]) for line in read_metrics(folder)] == [
        (10, 1.0),
        (20, 1.0),
        (30, 1.0),
        (40, 2.0),
    ]
    MetricsLog(folder, resume_clips=0)
    assert read_metrics(folder) == []


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    storage.write_text(str(tmp_path / "metrics.jsonl"), '{"clips": 10}\n{"cli')
    assert read_metrics(str(tmp_path)) == [{"clips": 10}]
    MetricsLog(str(tmp_path), resume_clips=10).write({"clips": 20})
    assert read_metrics(str(tmp_path)) == [{"clips": 10}, {"clips": 20}]


@pytest.mark.parametrize("first", ["local", "remote"])
def test_a_run_that_is_copied_and_resumed_keeps_its_curve(tmp_path, first):
    local, remote = str(tmp_path / "mdsa"), f"memory://copied-{first}-{tmp_path.name}/mdsa"
    there, here = (local, remote) if first == "local" else (remote, local)
    log = MetricsLog(there, resume_clips=0)
    for clips in (10, 20, 30):
        log.write({"clips": clips, "loss": 1.0})
    log.flush()
    for path in storage.list_files(there):
        storage.write_bytes(storage.join(here, path.rsplit("/mdsa/", 1)[1]), storage.read_bytes(path))
    for resumed in (20, 30):
        log = MetricsLog(here, resume_clips=resumed)
        for clips in (30, 40):
            if clips > resumed:
                log.write({"clips": clips, "loss": 2.0})
        log.flush()
        losses = [(line["clips"], line["loss"]) for line in read_metrics(here)]
        assert losses == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    MetricsLog(here, resume_clips=0)
    assert read_metrics(here) == []
