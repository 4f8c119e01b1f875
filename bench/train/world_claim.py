"""The paper's claim on the made world: do cross-modal modules make generated sound more synchronous?

    python examples/world/make.py runs/world-clips --clips 3000
    python ray_jobs/preprocess.py --config configs/world.yaml
    python -m bench.train.world_claim runs/world-clips runs/world/data [--out DIR] [--seeds 0 1 2]
    python -m bench.train.world_claim runs/world-clips --measure CHECKPOINT
    python -m bench.train.world_claim runs/world-clips --draw CHECKPOINT OUT.png

Trains both stages of each variant in `variants/world_claim.yaml` (or `--spec FILE`, such as
`variants/world_layouts.yaml`) with each seed, by the job scripts. Then each model makes the sound of the same
held-out pictures, and the world's metric measures it. A variant that is already trained is only measured, and
one that was stopped is resumed. `--only NAME` runs one variant, so that two commands can run at the same
time; the last of them prints the results of all. `--measure` and `--draw` train nothing: they measure a
checkpoint, or draw its sound and the true sound.

Prints for each seed and for all of them: `impact_synchrony` with its interval over clips, the same for these
sounds with another clip's pictures, and the world's other scores. The score with another clip's pictures is
that of chance: the more sounds a model makes, the more impacts they meet. Then it prints the difference
between the first variant and each other, with Student's interval over the seeds and a bootstrap interval over
clips.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from bench.metrics.world_metric import over_clips
from proav.config.reading import load_config
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip, read_clip
from proav.media.melframes import MelFrames
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.metrics.world import world_scores
from proav.metrics.world.world_scores import WITH_SCALE, see
from proav.runs.checkpoint import load_checkpoint
from proav.tune.budgets import clips_for_flops, train_flops

ROOT = Path(__file__).parents[2]
SPEC = Path(__file__).parent / "variants" / "world_claim.yaml"
SHOWN = (*WITH_SCALE, "sounds")
STEPS, BATCH = 30, 10


def held_out(folder: Path, count: int, shape: dict) -> tuple[list[Clip], list[str], list[str]]:
    """(windows, labels, names of their clips): the first and last window of `count` held-out clips.

    folder: the world's folder.
    count: number of clips.
    shape: num_frames, fps, sample_rate, height and width of a window.
    """
    with open(folder / "test.csv") as file:
        rows = list(csv.DictReader(file))
    stride, labels_in_turn = max(1, len(rows) // count), len({row["labels"] for row in rows})
    if labels_in_turn > 1 and stride % labels_in_turn == 0:
        stride -= 1  # else all would have one label
    rows = rows[::stride][:count]
    frames, fps = shape["num_frames"], shape["fps"]
    windows, labels, names = [], [], []
    for row in rows:
        size = {name: shape[name] for name in ("fps", "sample_rate", "height", "width")}
        clip = read_clip(str(folder / row["path"]), **size)
        for first in (0, len(clip.video) - frames):
            sound = clip.audio[first * clip.sample_rate // fps :][: frames * clip.sample_rate // fps]
            windows.append(Clip(clip.video[first : first + frames], sound, clip.fps, clip.sample_rate))
            labels.append(row["labels"])
            names.append(row["path"])
    return windows, labels, names


def make_sounds(checkpoint: Path, windows: list[Clip], labels: list[str]) -> list[np.ndarray]:
    """The sound that a model makes for the pictures of each window."""
    pipeline = SoundingVideoPipeline.from_checkpoint(str(checkpoint))
    settings = SamplingSettings(task="v2a", steps=STEPS)
    made = []
    for first in range(0, len(windows), BATCH):
        requests = [
            SampleRequest(0, first + place, label, window, settings)
            for place, (window, label) in enumerate(
                zip(windows[first : first + BATCH], labels[first : first + BATCH], strict=True)
            )
        ]
        made += [clip.audio for clip in pipeline.sample(requests)]
    return made


def measure(checkpoint: Path, windows: list[Clip], labels: list[str]) -> dict[str, list[dict[str, float]]]:
    """The world's scores of the sound that is made for each window: "own" with the window's pictures, "other"
    with those of the window half the list away. Of 150 clips that is a window with the same label, since
    labels go round by five.
    """
    made = make_sounds(checkpoint, windows, labels)
    half = len(windows) // 2
    others = windows[half:] + windows[:half]

    def scores(pictures: list[Clip]) -> list[dict[str, float]]:
        return [
            world_scores(clip.video, audio, fps=clip.fps, sample_rate=clip.sample_rate, label=label)
            for clip, audio, label in zip(pictures, made, labels, strict=True)
        ]

    return {"own": scores(windows), "other": scores(others)}


def draw(checkpoint: Path, out: Path, windows: list[Clip], labels: list[str], count: int = 5) -> None:
    """Draws frames, true sound and generated sound of the first window with impacts of each label.

    A line through all three marks each impact in the picture.

    checkpoint: the model.
    out: path of the figure.
    windows: the windows.
    labels: their labels.
    count: number of windows to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    impacts = [[impact.time for impact in see(window.video, fps=window.fps)[0]] for window in windows]
    places = [labels.index(label) for label in sorted(set(labels))]
    for number, first in enumerate(places):
        same = (place for place in range(first, len(windows)) if labels[place] == labels[first])
        places[number] = next((place for place in same if impacts[place]), first)
    places = places[:count]
    shown, names = [windows[place] for place in places], [labels[place] for place in places]
    sounds = make_sounds(checkpoint, shown, names)
    mel_frames = MelFrames(load_checkpoint(str(checkpoint), kind="stdit").config)
    figure, axes = plt.subplots(
        len(shown), 3, figsize=(15, 1.15 * len(shown)), width_ratios=(2, 1, 1), layout="constrained"
    )
    for row, place, window, made in zip(axes, places, shown, sounds, strict=True):
        seconds = len(window.video) / window.fps
        extent = (0, seconds, 0, 1)
        row[0].imshow(np.concatenate(window.video, axis=1), extent=extent, aspect="auto")
        for axis, sound in zip(row[1:], (window.audio, made), strict=True):
            mel_TMS = mel_frames.encode(torch.from_numpy(np.ascontiguousarray(sound))[None])[0]
            mel = mel_TMS.permute(1, 0, 2).flatten(1).numpy()
            axis.imshow(mel, extent=extent, aspect="auto", origin="lower", cmap="magma", vmin=-1, vmax=1)
        for axis in row:
            axis.set_yticks([])
            axis.tick_params(labelsize=7)
            for time_seconds in impacts[place]:
                axis.axvline(time_seconds, color="white", linewidth=1, linestyle=":")
        row[0].set_ylabel(labels[place], fontsize=9)
    for axis, title in zip(
        axes[0], ("pictures, given", "their true sound", "sound that the model makes"), strict=True
    ):
        axis.set_title(title, fontsize=9, loc="left")
    figure.savefig(out, dpi=80)
    plt.close(figure)


def synchrony(scores: list[dict[str, float]], places: np.ndarray) -> float:
    """impact_synchrony over all impacts of the windows with these indices."""
    counts = np.array([scores[place]["impacts"] for place in places])
    values = np.array([scores[place]["impact_synchrony"] for place in places])
    seen = counts > 0
    return float(np.average(values[seen], weights=counts[seen])) if seen.any() else float("nan")


def read_spec(path: Path) -> dict:
    """A file of variants: `config`, `base`, `variants`, and perhaps `budget`. One with `from: FILE` has that
    file's config, and its base is added to that file's.
    """
    spec = yaml.safe_load(path.read_text())
    if "from" in spec:
        below = read_spec(path.parent / spec["from"])
        spec = below | spec | {"base": below["base"] + spec["base"]}
    return spec


def settings_of(spec: dict, variant: str) -> list[str]:
    """The settings of a variant. With `budget: flops`, both stages train on so many clips as cost what those
    of the first variant cost.
    """
    settings = [*spec["base"], *spec["variants"][variant]]
    if spec.get("budget") != "flops":
        return settings
    first = load_config(str(ROOT / spec["config"]), spec["base"] + next(iter(spec["variants"].values())))
    config = load_config(str(ROOT / spec["config"]), settings)
    for stage, section in (("mdsa", first.mdsa), ("stdit", first.stdit)):
        clips = clips_for_flops(config, stage, train_flops(first, stage, section.train.num_clips))
        settings.append(f"{stage}.train.num_clips={clips}")
    return settings


def train(config: str, settings: list[str], run: Path) -> None:
    """Trains both stages by the job scripts, or resumes them. Raises SystemExit if a job fails."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "jobs.log", "a") as log:
        for job, *words in (("train", "stage=mdsa"), ("encode",), ("train", "stage=stdit")):
            command = [sys.executable, f"ray_jobs/{job}.py", "--config", config, *settings, *words]
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode:
                raise SystemExit(f"world_claim: {' '.join(command)} failed; see {run / 'jobs.log'}")


def student(values: list[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval by Student's t)."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def show_difference(found: dict[str, dict[str, dict]], base: str, variant: str, groups: list) -> dict | None:
    """Prints and returns the difference of impact_synchrony between two variants; None without a common seed.

    found: {variant: {seed: result of `measure`}}.
    base: name of the variant from which the other is taken.
    variant: name of the other.
    groups: for each clip, the places of its windows.
    """
    common = sorted(set(found[base]) & set(found[variant]))
    if not common:
        return None
    pairs = [(found[base][seed]["own"], found[variant][seed]["own"]) for seed in common]

    def each(places: np.ndarray) -> list[float]:
        return [synchrony(first, places) - synchrony(second, places) for first, second in pairs]

    by_seed = each(np.concatenate(groups))
    mean, half = student(by_seed)
    clips = bootstrap_interval(lambda places: float(np.mean(each(places))), groups)
    print(
        f"{base} less {variant}: {mean:+.3f}, over {len(common)} seeds {mean - half:+.3f} .. "
        f"{mean + half:+.3f}, over clips {clips.low:+.3f} .. {clips.high:+.3f}"
    )
    return {
        "mean": mean, "seeds": [mean - half, mean + half], "clips": [clips.low, clips.high], "each": by_seed,
    }  # fmt: skip


def show(found: dict[str, dict[str, dict]], sources: list[str]) -> dict:
    """Prints the tables; returns the numbers.

    found: {variant: {seed: result of `measure`}}.
    sources: names of the windows' clips.
    """
    groups = source_groups(sources)
    numbers: dict = {"variants": {}}
    print(f"{'variant':24} seed  " + "  ".join(SHOWN) + "  beside other pictures")
    for variant, seeds in found.items():
        rows = {}
        for seed, scores in seeds.items():
            own, all_clips = scores["own"], np.arange(len(sources))
            interval = bootstrap_interval(lambda places, own=own: synchrony(own, places), groups)
            rows[seed] = over_clips(own) | {
                "interval": [interval.low, interval.high],
                "chance": synchrony(scores["other"], all_clips),
            }
            rows[seed]["above_chance"] = rows[seed]["impact_synchrony"] - rows[seed]["chance"]
            cells = "  ".join(f"{rows[seed][name]:>{len(name)}.3f}" for name in SHOWN)
            print(
                f"{variant:24} {seed:>4}  {cells}  {rows[seed]['chance']:.3f}   "
                f"impact_synchrony {interval.low:.3f} .. {interval.high:.3f}"
            )
        mean, half = student([row["impact_synchrony"] for row in rows.values()])
        print(f"{variant:24}  all  {mean:.3f} +- {half:.3f}")
        numbers["variants"][variant] = {"seeds": rows, "mean": mean, "half_interval": half}
    numbers["differences"], numbers["other_scores"] = {}, {}
    base, *others = found
    for variant in others:
        numbers["differences"][variant] = show_difference(found, base, variant, groups)
        rows = [numbers["variants"][name]["seeds"] for name in (base, variant)]
        numbers["other_scores"][variant] = show_other_scores(f"{base} less {variant}", *rows)
    return numbers


def show_other_scores(
    title: str, first: dict[str, dict], second: dict[str, dict]
) -> dict[str, tuple[float, float]]:
    """Prints and returns differences of the other scores, seed by seed: (mean, half of Student's interval).

    first, second: {seed: scores} of two variants.
    """
    common = sorted(set(first) & set(second))
    found = {}
    for name in (*SHOWN[1:], "chance", "above_chance"):
        values = [(first[seed][name], second[seed][name]) for seed in common]
        if values and not any(None in pair for pair in values):
            found[name] = student([one - other for one, other in values])
            print(f"{title}: {name} {found[name][0]:+.3f} +- {found[name][1]:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path, help="the folder of examples/world/make.py")
    parser.add_argument("data", type=Path, nargs="?", help="the prepared data of configs/world.yaml")
    parser.add_argument("--measure", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("CHECKPOINT", "OUT"))
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument("--out", type=Path, default=Path("runs/world-claim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--clips", type=int, default=150, help="held-out clips, of two windows each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec, out = read_spec(arguments.spec), arguments.out.resolve()
    variants = arguments.only or list(spec["variants"])
    if unknown := [name for name in variants if name not in spec["variants"]]:
        parser.error(f"--only {unknown[0]!r} is not in {arguments.spec}: {', '.join(spec['variants'])}")
    began = time.monotonic()
    shape = load_config(str(ROOT / spec["config"]), spec["base"]).clip
    size = {name: getattr(shape, name) for name in ("num_frames", "fps", "sample_rate", "height", "width")}
    windows, labels, names = held_out(arguments.world, arguments.clips, size)
    if arguments.draw:
        draw(*arguments.draw, windows, labels)
        return
    if arguments.measure:
        scores = measure(arguments.measure, windows, labels)
        show({str(arguments.measure): {"-": json.loads(json.dumps(scores))}}, names)
        return
    if arguments.data is None:
        parser.error("the prepared data are missing: python -m bench.train.world_claim WORLD DATA")
    stored_as = f"sound_for_{len(windows)}_windows.json"
    for seed in arguments.seeds:
        for variant in variants:
            run = out / f"{variant.replace(' ', '_')}-{seed}"
            stored = run / stored_as
            if stored.exists():
                continue
            data = f"data.prepared={arguments.data.resolve()}"
            own = [f"run_dir={run}", data, f"seed={seed}"]
            train(spec["config"], [*settings_of(spec, variant), *own], run)
            scores = measure(run / "stdit" / "checkpoints" / "latest", windows, labels)
            stored.write_text(json.dumps(scores))
            said = synchrony(scores["own"], np.arange(len(windows)))
            print(f"{variant}, seed {seed}: impact_synchrony {said:.3f}", file=sys.stderr, flush=True)
    found: dict[str, dict[str, dict]] = {}
    for variant in spec["variants"]:
        for stored in sorted(out.glob(f"{variant.replace(' ', '_')}-*/{stored_as}")):
            seed = stored.parent.name.rsplit("-", 1)[1]
            found.setdefault(variant, {})[seed] = json.loads(stored.read_text())
    numbers = show(found, names)
    spent = round(time.monotonic() - began)
    print(json.dumps({"bench": "world_claim", "windows": len(windows), "seconds": spent, **numbers}))


if __name__ == "__main__":
    main()
