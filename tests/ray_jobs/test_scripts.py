"""Job scripts without Ray: --help, --dry-run, and mistakes reported in a line or two with exit status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proav.config.reading import config_to_yaml
from tests.tiny import save_tiny_stdit, tiny_config

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "ray_jobs").glob("*.py"))


def run(script: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "ray_jobs" / script), *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_settings(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "mdsa.width=384" in done.stdout and "--dry-run" in done.stdout


def test_dry_run_prints_settings_and_costs_and_leaves_nothing(tmp_path):
    done = run(
        "train.py", "--config", "configs/landscape.yaml", "--dry-run", f"run_dir={tmp_path}/run", "stage=mdsa"
    )
    assert done.returncode == 0, done.stderr
    assert "plane_size: 16" in done.stdout and "FLOP" in done.stdout and "parameters" in done.stdout.lower()
    assert not (tmp_path / "run").exists()


def test_settings_may_stand_on_both_sides_of_options(tmp_path):
    done = run(
        "train.py",
        "seed=3",
        "--config",
        "configs/landscape.yaml",
        "--dry-run",
        f"run_dir=file://{tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    assert "seed: 3" in done.stdout and f"run_dir: {tmp_path}/run" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mdsa.witdh=3"], "did you mean mdsa.width?"),
        (["--config", "configs/landscap.yaml"], "configs/landscape.yaml"),
        (["--confg", "x"], "--help"),
        (["stage=everything"], "'mdsa', 'stdit' or 'distill'"),
        (["diffusion.task_weights={sing: 1}"], "expected some of joint, a2v, v2a, independent"),
        (["generate.task=sing"], "expected one of joint, a2v, v2a, i2av, continue, inpaint"),
        (["train.batch_size=-1"], "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(words, said, tmp_path):
    done = run("train.py", *words, f"run_dir={tmp_path}/run")
    assert done.returncode == 2
    assert (
        said in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["train.py", "demo.py"])
@pytest.mark.parametrize(
    ("wrong", "said"), [("mdsa.width=24", "mdsa.width=16"), ("stdit.depth=2", "trained with stdit.depth=1")]
)
def test_a_start_that_does_not_fit_is_refused_before_anything_begins(script, wrong, said, tmp_path):
    """Also by --dry-run, and for ST-DiT before MDSA is trained."""
    start = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(tiny_config()))
    words = [f"{stage}.init_from={start}" for stage in ("mdsa", "stdit")] + ["--dry-run"] * (
        script != "demo.py"
    )
    done = run(script, "--config", f"{tmp_path}/tiny.yaml", *words, wrong, f"run_dir={tmp_path}/run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["train.py", "demo.py"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["generate.guidance_interval=[0.8,0.2]"],
            "generate.guidance_interval=[0.8,0.2]: expected two times",
        ),
        (["generate.solver=foo"], "generate.solver=foo is unknown; expected one of euler, heun"),
        (
            ["generate.solver=euler", "diffusion.objective=ddpm"],
            "generate.solver=euler does not follow diffusion.objective=ddpm; expected one of dpmpp_2m, ddim",
        ),
        (["diffusion.objective=flow_map"], "stage=stdit cannot train diffusion.objective=flow_map"),
        (
            ["diffusion.objective=ddpm", "generate.stage=distill"],
            "generate.stage=distill with diffusion.objective=ddpm: a flow map is made from a flow",
        ),
    ],
)
def test_what_no_model_of_the_run_could_use_is_refused_before_anything_begins(script, words, said, tmp_path):
    """Also by --dry-run; otherwise it would be said after hours of training, or by the server."""
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(tiny_config()))
    dry = ["--dry-run"] * (script != "demo.py")
    done = run(script, "--config", f"{tmp_path}/tiny.yaml", *dry, *words, f"run_dir={tmp_path}/run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("preprocess.py", f"run_dir={tmp_path}/file/run")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
