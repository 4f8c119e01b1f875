"""The order of the packages, called rooms: a room imports only from those below it.

Mathematics runs without Ray and DeepSpeed.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "proav").rglob("*.py"))
RAY_FREE = [
    "proav",
    "proav.config",
    "proav.config.reading",
    "proav.geometry",
    "proav.storage",
    "proav.runs.checkpoint",
    "proav.costs",
    "proav.media.container",
    "proav.media.melframes",
    "proav.models.mdsa",
    "proav.models.stdit",
    "proav.models.discriminators",
    "proav.models.perceptual",
    "proav.diffusion",
    "proav.generation.denoise",
    "proav.metrics.fidelity",
    "proav.metrics.plane_components",
    "proav.metrics.cosine_transform",
    "proav.metrics.blockiness",
    "proav.metrics.distances",
    "proav.metrics.neighbours",
    "proav.metrics.bootstrap",
    "proav.metrics.networks",
    "proav.metrics.av_align",
    "proav.metrics.clip_synchrony",
    "proav.metrics.world",
    "proav.evaluate.measure",
    "proav.evaluate.numbers",
    "proav.evaluate.yardsticks",
    "proav.evaluate.reconstruction",
    "proav.data.store.shards",
    "proav.data.feeds.feed",
    "proav.latents.encode",
    "proav.train.loop",
    "proav.train.autoencoder_step",
    "proav.train.generator_step",
    "proav.generation.pipeline",
    "proav.generation.batch.making",
    "proav.reports.run_page",
    "proav.serve.api.http",
    "proav.serve.on_ray.sampler",
    "proav.tune.axes",
    "proav.tune.budgets",
    "proav.tune.results",
    "proav.tune.space",
    "proav.tune.sweep_yardsticks",
]
ROOMS = (
    "proav.errors",
    "proav.text",
    "proav.vectors",
    "proav.geometry",
    "proav.config",
    "proav.stopping",
    "proav.foreign_weights",
    "proav.storage",
    "proav.on_ray",
    "proav.runs",
    "proav.media",
    "proav.signals",
    "proav.diffusion",
    "proav.models",
    "proav.models.mdsa",
    "proav.models.stdit",
    "proav.costs",
    "proav.metrics",
    "proav.data.sources",
    "proav.data.store",
    "proav.data.feeds",
    "proav.data.prepare",
    "proav.generation",
    "proav.latents",
    "proav.reports",
    "proav.evaluate",
    "proav.train",
    "proav.train.on_ray",
    "proav.tune",
    "proav.serve.front",
    "proav.serve.settings",
    "proav.serve.orders",
    "proav.serve.queue",
    "proav.serve.api",
    "proav.serve.on_ray",
    "proav.serve",
    "proav.export",
    "proav.command_line",
)
"""From the ground up: a module imports only from its own room and from the rooms before it."""
WITH_RAY = {
    "proav/command_line.py",
    "proav/data/feeds/remote_feed.py",
    "proav/data/prepare/preprocess.py",
    "proav/evaluate/job.py",
    "proav/evaluate/measure.py",
    "proav/generation/batch/job.py",
    "proav/latents/encode.py",
    "proav/on_ray/resources.py",
    "proav/on_ray/start.py",
    "proav/serve/__init__.py",
    "proav/serve/on_ray/application.py",
    "proav/serve/on_ray/listen.py",
    "proav/train/on_ray/backend.py",
    "proav/train/on_ray/launch.py",
    "proav/train/on_ray/mailbox.py",
    "proav/train/on_ray/turn.py",
    "proav/train/on_ray/validation.py",
    "proav/tune/trial_measure.py",
    "proav/tune/population.py",
    "proav/tune/search.py",
    "proav/tune/sweep.py",
    "proav/tune/sweep_yardsticks.py",
}
"""The files that import Ray, most of them within a function."""
WITH_DEEPSPEED = {"proav/train/engines/zero.py"}
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


@pytest.mark.parametrize("module", ["proav.data.prepare.preprocess", "proav.train.on_ray.mailbox"])
def test_processes_that_need_no_torch_do_not_load_it(module):
    """PyTorch costs a process 1.5 s of its start and 180 MB."""
    code = f"import {module}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_proav_is_light():
    code = (
        "import proav, sys; "
        "print([name for name in ('torch', 'ray', 'deepspeed', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def room_of(module: str) -> int:
    """The number of the room that a module stands in: the room with the longest matching name."""
    rooms = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    assert rooms, f"{module} stands in no room: add it to ROOMS"
    return ROOMS.index(max(rooms, key=len))


def imported_by(path: Path) -> set[str]:
    """Names of all modules that a file imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reaches_up(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "proav":
        return
    if path.name == "__init__.py" and path.parent.name == "data":
        assert not imported_by(path)
        return
    imported = {name for name in imported_by(path) if name.startswith("proav.")}
    assert sorted(name for name in imported if room_of(name) > room_of(module)) == []


@pytest.mark.parametrize(("library", "files"), [("ray", WITH_RAY), ("deepspeed", WITH_DEEPSPEED)])
def test_these_files_import_ray_and_deepspeed_and_no_others(library, files):
    def imports(path: Path) -> bool:
        return any(name.partition(".")[0] == library for name in imported_by(path))

    assert {str(path.relative_to(ROOT)) for path in FILES if imports(path)} == files


def test_job_scripts_stay_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "ray_jobs").glob("*.py")}
    assert lengths and all(length < 100 for length in lengths.values()), lengths
