"""Batch generation on Ray: any pools make the same files, and a job that was killed goes on."""

from pathlib import Path

import pytest

from proav.errors import UserError
from proav.generation.batch import generate
from proav.generation.batch.job import Pools, pools
from proav.generation.batch.making import Maker, recipe_of
from proav.generation.batch.plan import make_plan, shared_values, unpack, wanted_rows
from proav.media.container import read_clip
from proav.runs.checkpoint import load_checkpoint
from tests.media.hostile_files import wav
from tests.tiny import save_tiny_stdit, tiny_config


@pytest.mark.parametrize(
    ("words", "num_cpus", "use_gpu", "expected"),
    [
        ([], 2, False, Pools((1, 1), 0, 0)),
        (["generate.num_workers=4"], 2, False, Pools((4, 4), 0, 0)),
        (["generate.num_workers=40"], 64, False, Pools((9, 9), 0, 0)),  # as many as there are blocks
        (["generate.num_workers=[2,5]", "generate.num_writers=1"], 8, False, Pools((2, 5), 0, 1)),
        ([], 1, True, Pools((1, 1), 0, 0)),
        ([], 16, True, Pools((1, 1), 0, 15)),
        (["generate.num_workers=[1,8]"], 16, True, Pools((1, 8), 0, 8)),
        (["generate.num_workers=[1,8]", "generate.task=v2a"], 16, True, Pools((1, 8), 2, 6)),
        (["generate.task=a2v", "generate.num_writers=2"], 16, True, Pools((1, 1), 1, 2)),
        (["generate.task=a2v"], 2, True, Pools((1, 1), 0, 1)),
        # a number that is set is kept; readers get what is left
        (
            ["generate.task=a2v", "generate.num_workers=4", "generate.num_writers=2"],
            6,
            True,
            Pools((4, 4), 0, 2),
        ),
        (
            ["generate.task=a2v", "generate.num_workers=4", "generate.num_writers=2"],
            7,
            True,
            Pools((4, 4), 1, 2),
        ),
    ],
)
def test_all_processes_of_a_job_fit_together(words, num_cpus, use_gpu, expected):
    found = pools(tiny_config(*words), num_blocks=9, num_cpus=num_cpus, use_gpu=use_gpu)
    assert found == expected
    if found.writers:
        assert found.denoisers[1] + found.readers + found.writers <= num_cpus


def test_writers_that_do_not_fit_are_refused():
    config = tiny_config("generate.num_writers=2")
    with pytest.raises(UserError, match="needs 3 CPUs; the cluster has 2: .* generate.num_writers=0"):
        pools(config, num_blocks=9, num_cpus=2, use_gpu=False)


def test_a_flow_map_that_is_not_there_is_reported(tmp_path):
    config = tiny_config(f"run_dir={tmp_path}", "generate.stage=distill")
    said = "no flow map in .*/distill/checkpoints; make one with: .* stage=distill, or .*generate.stage=stdit"
    with pytest.raises(UserError, match=said):
        generate(config)


def test_samples_of_other_settings_or_without_a_file_are_counted(tmp_path, monkeypatch, capsys):
    def made(config, recipe, batches):  # by this process instead of Ray's
        for batch in batches:
            yield unpack(Maker(recipe)({"batch": batch})["batch"])

    monkeypatch.setattr("proav.generation.batch.job._made", made)
    path = save_tiny_stdit(str(tmp_path / "checkpoints"), tiny_config())
    words = [f"run_dir={tmp_path / 'run'}", f"generate.checkpoint={path}", "generate.num_samples=2"]
    folder = generate(tiny_config(*words)).folder
    assert "made anew" not in capsys.readouterr().out
    Path(folder, "000000", "000000001.mp4").rename(Path(folder, "000000", ".000000001.mp4.0123abcd.tmp"))
    said = "samples of another checkpoint or other settings, or whose file is missing, are made anew"
    for more, count in (("seed=0", 1), ("seed=7", 2)):
        generate(tiny_config(*words, more))
        assert f"generate: {count} {said}\n" in capsys.readouterr().out
        assert sorted(files_of(folder)) == [
            "000000/000000000.mp4", "000000/000000001.mp4", "manifest.jsonl"
        ]  # fmt: skip


def files_of(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.*")}


@pytest.mark.ray
def test_any_pools_make_the_same_files_and_a_killed_job_goes_on(tmp_path, ray_local, capsys):
    trained = tiny_config("diffusion.task_weights={joint: 1, a2v: 1, inpaint: 1}")
    path = save_tiny_stdit(str(tmp_path / "checkpoints"), trained)
    good, broken = tmp_path / "good.wav", tmp_path / "broken.wav"
    good.write_bytes(wav(2.0))
    broken.write_bytes(b"no sound")
    lines = f"{good},rain,4,", f"{broken},,1,", f"{good},speech,1,1.8"  # the last one has windows in turn
    (tmp_path / "rows.csv").write_text("\n".join(["path,label,count,seconds", *lines]) + "\n")
    words = ["generate.task=a2v", f"generate.listing={tmp_path}/rows.csv", f"generate.checkpoint={path}"]

    def config_of(name, *more):
        return tiny_config(*words, f"run_dir={tmp_path / name}", *more)

    outcome = generate(config_of("one"))
    assert outcome.num_samples == 5 and outcome.errors == {"unreadable": 1}
    assert "REJECTED: the inputs of 1 more (unreadable 1)" in capsys.readouterr().out
    expected = files_of(f"{tmp_path}/one/samples")
    assert len(expected) == 6 and expected["manifest.jsonl"].count(b"\n") == 6
    shape = {"fps": 5, "sample_rate": 16_000, "height": 32, "width": 32}
    long = read_clip(f"{tmp_path}/one/samples/000000/000000005.mp4", **shape)
    assert len(long.video) == 9
    # the folder that a job leaves if it is killed after its second batch
    config, checkpoint = config_of("killed", "generate.num_workers=2"), load_checkpoint(path)
    folder, shared = f"{config.run_folder}/samples", shared_values(config, checkpoint)
    plan = make_plan(folder, wanted_rows(config, checkpoint), shared, 2)
    make = Maker(recipe_of(config, checkpoint.config, path, folder, shared))
    assert make({"batch": plan.batches[1]})["error"] == ""
    before = Path(folder, "000000", "000000002.mp4").stat().st_mtime_ns
    for made in (generate(config), generate(config_of("apart", "generate.num_writers=1"))):
        assert made.num_samples == 5 and files_of(made.folder) == expected
    assert Path(folder, "000000", "000000002.mp4").stat().st_mtime_ns == before
    capsys.readouterr()
    again = generate(config)
    assert (
        again.errors == {"unreadable": 1} and "generate: done already, 5 samples" in capsys.readouterr().out
    )


def test_steps_that_the_process_does_not_have_leave_the_samples_as_they_are(tmp_path):
    trained = tiny_config("diffusion.objective=ddpm")
    path = save_tiny_stdit(str(tmp_path / "checkpoints"), trained)
    (tmp_path / "run" / "samples").mkdir(parents=True)
    words = [f"run_dir={tmp_path / 'run'}", f"generate.checkpoint={path}"]
    manifest = tmp_path / "run" / "samples" / "manifest.jsonl"
    manifest.write_text('{"index": 0, "path": "000000/000000000.mp4"}\n')
    before = manifest.read_text()
    with pytest.raises(UserError, match="generate.steps=200 with generate.schedule_shift=10: ddpm has 1000"):
        generate(tiny_config(*words, "generate.steps=200", "generate.schedule_shift=10"))
    assert manifest.read_text() == before
