"""The floors of the house: a module imports only from its own floor and from those below; mathematics runs without Ray and DeepSpeed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RAY_FREE = [
    "proav",
    "proav.config",
    "proav.settings",
    "proav.geometry",
    "proav.storage",
    "proav.checkpoint",
    "proav.costs",
    "proav.media.container",
    "proav.media.melframes",
    "proav.models.mdsa",
    "proav.models.stdit",
    "proav.models.discriminators",
    "proav.models.perceptual",
    "proav.diffusion",
    "proav.diffusion.sampler",
    "proav.metrics.reconstruction",
    "proav.metrics.linear_planes",
    "proav.metrics.cosine_transform",
    "proav.metrics.blockiness",
    "proav.metrics.distances",
    "proav.metrics.neighbours",
    "proav.metrics.bootstrap",
    "proav.metrics.networks",
    "proav.metrics.av_align",
    "proav.metrics.synchrony",
    "proav.evaluate.measure",
    "proav.evaluate.numbers",
    "proav.evaluate.yardsticks",
    "proav.evaluate.reconstruction",
    "proav.data.shards",
    "proav.data.feed",
    "proav.data.latents",
    "proav.train.loop",
    "proav.train.autoencoder",
    "proav.train.generator",
    "proav.pipeline",
    "proav.report",
    "proav.serve.http",
    "proav.serve.sampler",
    "proav.tune.axes",
    "proav.tune.budgets",
    "proav.tune.results",
    "proav.tune.space",
    "proav.tune.yardsticks",
]
FLOORS = {
    1: (
        "proav.errors",
        "proav.config",
        "proav.settings",
        "proav.geometry",
        "proav.storage",
        "proav.text",
        "proav.checkpoint",
        "proav.progress",
        "proav.foreign_weights",
        "proav.export",
        "proav.patience",
        "proav.filesystems",
        "proav.stopping",
        "proav.lease",
        "proav.paths",
    ),
    2: ("proav.models", "proav.diffusion", "proav.media"),
    3: (
        "proav.data",
        "proav.metrics",
        "proav.report",
        "proav.report_page",
        "proav.pipeline",
        "proav.costs",
        "proav.cluster",
        "proav.ray_start",
    ),
    4: ("proav.train", "proav.batch", "proav.evaluate", "proav.serve"),
    5: ("proav.jobs", "proav.tune"),
}
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('ray', 'deepspeed'):
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_mathematics_imports_without_ray_and_deepspeed():
    done = subprocess.run([sys.executable, "-c", BLOCK, *RAY_FREE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_proav_is_light():
    code = "import proav, sys; print([name for name in ('torch', 'ray', 'deepspeed', 'av') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def floor_of(module: str) -> int:
    for floor, homes in FLOORS.items():
        if any(module == home or module.startswith(home + ".") for home in homes):
            return floor
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


@pytest.mark.parametrize("path", sorted((ROOT / "proav").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reaches_up(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "proav":
        return
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("proav."):
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.startswith("proav.")}
    too_high = sorted(name for name in imported if floor_of(name) > floor_of(module))
    assert not too_high


def test_job_scripts_stay_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "ray_jobs").glob("*.py")}
    assert lengths and all(length < 100 for length in lengths.values()), lengths
