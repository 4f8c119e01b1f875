"""Which of nine changes to MDSA and ST-DiT make generated sound more synchronous on the made world?

    python examples/world/make.py runs/world-clips --clips 3000
    python ray_jobs/preprocess.py --config configs/world.yaml
    python -m bench.train.world_screening runs/world-clips runs/world/data [--out DIR] [--only 1 3 5]

One change at a time takes three trainings of each level. Here each of twelve trainings has all changes at one
of two levels, by Plackett and Burman's design (The Design of Optimum Multifactorial Experiments, Biometrika
33, 1946). So each level of each change is in six trainings, and the other changes are balanced beneath it:

    effect = mean of six trainings with the right level - mean of six with the left one

Each training has a seed of its own, so that an effect's error holds that of seeds. The factors are in
`variants/world_screening.yaml`. Columns of the design without a factor are spare, and show chance alone.

The margin is Lenth's (Quick and Easy Analysis of Unreplicated Factorials, Technometrics 31, 1989): 1.5 times
the median of the absolute effects, computed twice, the second time without those above 2.5 times the first;
times Student's 0.975 quantile with a third as many degrees of freedom as there are columns. An effect beyond
it is not chance. The design cannot tell an effect from the sums of two changes' interactions: read it as a
search for what matters, where a change that matters would show.

`--only` trains these rows of the design, so that two commands can run at the same time. A row's scores are
stored in DIR/ROW.json, and a row that has them is not trained again. So a screening can also go on from the
scores that another machine has measured. The last command prints the results.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench.metrics.world_metric import over_clips
from bench.train.world_claim import ROOT, held_out, measure, read_spec, synchrony, train
from proav.config.reading import load_config

SPEC = Path(__file__).parent / "variants" / "world_screening.yaml"
SCORES = (
    "impact_synchrony", "above_chance", "impacts_heard", "sounds_seen", "median_offset_ms", "label_fits",
    "pitch_fits",
)  # fmt: skip
"""above_chance: impact_synchrony less `chance`, the score beside other clips' pictures. A model that makes
many sounds meets many impacts by chance.
"""
FIRST_ROW = "++-+++---+-"  # Plackett and Burman's generator for 12 rows


def plackett_burman() -> np.ndarray:
    """The design: 12 rows and 11 columns of -1 and +1. Columns are balanced, and orthogonal to each other."""
    first = [1 if sign == "+" else -1 for sign in FIRST_ROW]
    return np.array([np.roll(first, shift) for shift in range(11)] + [[-1] * 11])


def effects(design: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(columns,): mean score where a column is +1, less the mean where it is -1. scores: (rows,)."""
    return design.T @ scores / (len(scores) / 2)


def lenth_margin(values: np.ndarray) -> float:
    """Half of the 95 % interval of an effect, from the effects of all columns (Lenth, 1989)."""
    from scipy.stats import t

    sizes = np.abs(values)
    rough = 1.5 * np.median(sizes)
    error = 1.5 * np.median(sizes[sizes < 2.5 * rough]) if rough else 0.0
    return float(t.ppf(0.975, len(values) / 3) * error)


def settings_of(factors: dict[str, dict[str, list[str]]], row: np.ndarray) -> list[str]:
    """The settings of one row of the design."""
    levels = zip(factors.values(), row, strict=False)  # the last columns are spare
    return [word for levels_of, sign in levels for word in levels_of["high" if sign > 0 else "low"]]


def show(factors: list[str], design: np.ndarray, rows: list[dict[str, float]]) -> dict:
    """Prints the rows and the effects with their margins; returns the numbers.

    factors: names of the first columns.
    rows: for each row of the design, its scores.
    """
    print("row  " + "  ".join(SCORES) + "  chance")
    for number, scores in enumerate(rows, 1):
        cells = "  ".join(f"{scores[name]:>{len(name)}.3f}" for name in SCORES)
        print(f"{number:>3}  {cells}  {scores['chance']:.3f}")
    names = [*factors, *(f"spare {place}" for place in range(1, design.shape[1] - len(factors) + 1))]
    found = {score: effects(design, np.array([scores[score] for scores in rows])) for score in SCORES}
    margins = {score: lenth_margin(values) for score, values in found.items()}
    width = max(map(len, names))
    print(f"\n{'effect of':{width}}  " + "  ".join(SCORES))
    for place, name in enumerate(names):
        cells = "  ".join(f"{found[score][place]:>+{len(score)}.3f}" for score in SCORES)
        print(f"{name:{width}}  {cells}")
    cells = "  ".join(f"{margins[score]:>{len(score)}.3f}" for score in SCORES)
    print(f"{'margin (95 %)':{width}}  {cells}")
    return {
        "rows": rows,
        "effects": {score: dict(zip(names, values.tolist(), strict=True)) for score, values in found.items()},
        "margins": margins,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path, help="the folder of examples/world/make.py")
    parser.add_argument("data", type=Path, help="the prepared data of configs/world.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/world-screening"))
    parser.add_argument("--only", type=int, nargs="+", default=None, metavar="ROW", help="rows 1 to 12")
    parser.add_argument("--clips", type=int, default=150, help="held-out clips, of two windows each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = read_spec(SPEC)
    design, out, began = plackett_burman(), arguments.out.resolve(), time.monotonic()
    rows = range(1, len(design) + 1)
    numbers = arguments.only or rows
    if unknown := [number for number in numbers if number not in rows]:
        parser.error(f"--only {unknown[0]} is not a row of the design: 1 to {len(design)}")
    shape = load_config(str(ROOT / spec["config"]), spec["base"]).clip
    size = {name: getattr(shape, name) for name in ("num_frames", "fps", "sample_rate", "height", "width")}
    windows, labels, _ = held_out(arguments.world, arguments.clips, size)
    stored = [out / f"{row:02}.json" for row in rows]
    for number in numbers:
        file = stored[number - 1]
        if file.exists():
            continue
        run, settings = file.with_suffix(""), settings_of(spec["factors"], design[number - 1])
        own = [f"run_dir={run}", f"data.prepared={arguments.data.resolve()}", f"seed={number}"]
        train(spec["config"], [*spec["base"], *settings, *own], run)
        scores = measure(run / "stdit" / "checkpoints" / "latest", windows, labels)
        chance = synchrony(scores["other"], np.arange(len(windows)))
        own = over_clips(scores["own"])
        more = {"chance": chance, "above_chance": own["impact_synchrony"] - chance}
        row = {"windows": len(windows), "settings": settings, **own, **more}
        file.write_text(json.dumps(row, indent=1) + "\n")
        said = f"impact_synchrony {row['impact_synchrony']:.3f}, {' '.join(settings)}"
        print(f"row {number}: {said}", file=sys.stderr, flush=True)
    if missing := [str(number) for number, file in enumerate(stored, 1) if not file.exists()]:
        print(f"world_screening: rows {', '.join(missing)} are not trained yet")
        return
    found = [json.loads(file.read_text()) for file in stored]
    result = show(list(spec["factors"]), design, found)
    spent = round(time.monotonic() - began)
    print(json.dumps({"bench": "world_screening", "windows": len(windows), "seconds": spent, **result}))


if __name__ == "__main__":
    main()
