"""Whether the number of workers changes an evaluation, and what it costs.

    python -m bench.metrics.evaluate REAL MADE [--weights DIR] [--workers 1 2 4]

REAL, MADE: any two folders of videos, for example clips and degraded copies of them. They are converted to 16
frames of 64x64 at 10 fps. The whole job runs again with each number of workers. Ray is given as many CPUs as
the largest number needs, even if the machine has fewer.

Prints for each number of workers the seconds, the clips per second of a thread for every network, and the
share of time spent reading. Then prints whether all tables are equal to the last digit, and exits with status
1 if they are not.
"""

import argparse
import json
import sys
import tempfile
import time

import ray

from proav.config.reading import load_config
from proav.evaluate.job import evaluate

VIEW = (
    "clip.num_frames=16",
    "clip.fps=10",
    "clip.height=64",
    "clip.width=64",
    "mel.num_bins=64",
    "mel.hop=50",
    "mdsa.plane_size=16",
    "data.fit=crop",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("real")
    parser.add_argument("made")
    parser.add_argument(
        "--weights",
        help="folder with i3d-kinetics400.safetensors and yamnet.safetensors; "
        "without it protocol small, with it full",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--max-clips", type=int, default=128)
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=max(arguments.workers), include_dashboard=False, log_to_driver=False)
    words = [
        *VIEW,
        f"evaluate.real={arguments.real}",
        f"evaluate.fake={arguments.made}",
        f"evaluate.max_clips={arguments.max_clips}",
    ]
    words += [f"evaluate.weights={arguments.weights}", "evaluate.protocol=full"] if arguments.weights else []
    tables, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for workers in arguments.workers:
            began = time.monotonic()
            metrics = evaluate(
                load_config(
                    None,
                    [
                        *words,
                        f"run_dir={folder}/{workers}",
                        f"evaluate.num_workers={workers}",
                        "evaluate.use_gpu=false",
                    ],
                )
            )
            seconds, spent = time.monotonic() - began, metrics["measuring"]
            clips = 2 * max(row["clips"] for table in metrics["tables"] for row in table["rows"])
            rates = {name.removesuffix("_seconds"): round(clips / value, 2) for name, value in spent.items()}
            rows.append(
                {"workers": workers, "seconds": round(seconds, 1), "clips_per_second_of_a_thread": rates}
            )
            rows[-1]["share_of_reading"] = round(spent["read_seconds"] / sum(spent.values()), 3)
            tables.append(json.dumps(metrics["tables"]))
    for row in rows:
        rates = ", ".join(f"{name} {rate:g}" for name, rate in row["clips_per_second_of_a_thread"].items())
        print(
            f"{row['workers']} workers: {row['seconds']} s; clips a second of a thread: {rates}; reading "
            f"{row['share_of_reading']:.1%} of the time"
        )
    same = len(set(tables)) == 1
    print(
        f"tables of {', '.join(map(str, arguments.workers))} workers: "
        f"{'equal to the last digit' if same else 'DIFFERENT'}"
    )
    print(json.dumps({"bench": "evaluate", "clips": clips, "equal": same, "rows": rows}))
    sys.exit(not same)


if __name__ == "__main__":
    main()
