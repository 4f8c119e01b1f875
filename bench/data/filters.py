"""What applying the filters costs on an index of millions of rows.

    python -m bench.data.filters [--rows N] [--alike none|picture|all]

Makes an index with random fingerprints. One row in a hundred is a copy of an earlier one, with 5 % of the
bits of both hashes flipped. Turns every filter on and reports the time, the highest resident memory and the
share of the copies that were found. --alike gives the worst cases: all rows have the same picture (one still
camera), or the same picture and sound. Prints a line and one JSON line.
"""

import argparse
import json
import platform
import resource
import time

import numpy as np
import pyarrow as pa

from proav.config import FilterConfig
from proav.data.prepare.filtering import count_reasons, dropped

FLIPPED = 0.05
EVERYTHING = FilterConfig(
    min_rms_db=-60,
    max_clipped=0.1,
    max_black=0.5,
    max_frozen=0.5,
    min_sync=-0.1,
    avoid_shot_cuts=True,
    duplicates="near",
)


def make_index(rows: int, alike: str) -> tuple[pa.Table, np.ndarray]:
    """(index, numbers of the rows that are copies)."""
    draw = np.random.default_rng(0)
    copies = np.sort(draw.choice(np.arange(1, rows), rows // 100, replace=False))
    originals = (copies * draw.random(len(copies))).astype(np.int64)
    copies, originals = (chosen[~np.isin(originals, copies)] for chosen in (copies, originals))
    columns = {}
    for name, same in (("picture_hash", alike != "none"), ("sound_hash", alike == "all")):
        hashes = draw.integers(0, 256, (rows, 32), dtype=np.uint8)
        hashes[copies] = hashes[originals] ^ np.packbits(draw.random((len(copies), 256)) < FLIPPED, axis=1)
        if same:
            hashes[:] = hashes[0]
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), rows, [None, pa.py_buffer(hashes.tobytes())]
        ).cast(pa.binary())
    cuts = pa.ListArray.from_arrays(
        pa.array(2 * np.arange(rows + 1), pa.int32()), pa.array(np.tile([30, 60], rows), pa.int32())
    )
    zeros = np.zeros(rows, np.float32)
    columns |= {
        "rms": zeros + 0.1,
        "sync": zeros + 0.2,
        "clipped": zeros,
        "black": zeros,
        "frozen": zeros,
        "shot_starts": cuts,
    }
    columns |= {
        "num_frames": np.full(rows, 100, np.int32),
        "checksum": [f"{number:032x}" for number in range(rows)],
    }
    return pa.table(columns), copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--alike", choices=("none", "picture", "all"), default="none")
    options = parser.parse_args()
    index, copies = make_index(options.rows, options.alike)
    began = time.perf_counter()
    reasons = dropped(index, EVERYTHING, num_frames=16)
    seconds = time.perf_counter() - began
    counts = count_reasons(reasons)
    found = float(np.mean(np.asarray(reasons.take(pa.array(copies))) == "near_duplicate"))
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    result = {
        "rows": options.rows,
        "alike": options.alike,
        "seconds": round(seconds, 2),
        "max_gb": round(gigabytes, 2),
    }
    result |= {
        "copies": len(copies),
        "found": round(found, 4),
        "dropped": counts,
        "cpu": platform.processor() or platform.machine(),
    }
    print(
        f"{options.rows:,} rows: {seconds:.1f} s, {gigabytes:.2f} GB at most, {100 * found:.1f} % of "
        f"{len(copies):,} copies found, {counts}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
