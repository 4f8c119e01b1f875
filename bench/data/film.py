"""Memory of preprocessing against the length of a source.

    python -m bench.data.film [--minutes 2 120]

Makes films of these lengths: the packets of a generated clip of 640x360 at 25 fps with sound, repeated with
later time stamps. As in the job, a fresh process prepares each film and decodes it in another process. Prints
the highest resident memory of both processes and the number of segments, then one JSON line.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av

from bench.data.decode import make_clips
from proav.config import Config
from proav.config.reading import load_config
from proav.data.prepare.isolation import IsolatedDecoder
from proav.data.prepare.plan import make_plan
from proav.data.prepare.unit import process_unit
from proav.data.sources.finding import find_sources


def make_film(clip: str, path: str, minutes: float) -> None:
    """Repeats the packets of a clip of ten seconds; nothing is encoded again.

    Repeats are a fifth of a second apart, because the sound is a little longer than ten seconds.
    """
    with av.open(clip) as source, av.open(path, "w", format="matroska") as target:
        streams = {
            stream.index: target.add_stream_from_template(stream)
            for stream in (source.streams.video[0], source.streams.audio[0])
        }
        for repeat in range(round(minutes * 60 / 10.2)):
            source.seek(0)
            for packet in source.demux():
                if packet.dts is None:
                    continue
                shift = round(10.2 * repeat / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)


def measure(path: str, data_dir: str) -> dict:
    """Prepares one film in this process; returns {"segments", "megabytes", "decoder_megabytes"}."""
    config: Config = load_config(
        "configs/landscape.yaml", ["data.listing=[]", f"data.sources=[{path}]", "data.labels=[]"]
    )
    (unit,) = make_plan(find_sources(config)).units()
    with IsolatedDecoder(config) as decoder:
        record = process_unit(config, data_dir, unit, decoder)
    assert record["rejects"] is None, record
    own, child = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "segments": sum(shard["rows"] for shard in record["shards"]),
        "megabytes": round(own, 1),
        "decoder_megabytes": round(child, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 120])
    parser.add_argument("--measure", nargs=2, metavar=("FILM", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    results = []
    with tempfile.TemporaryDirectory(prefix="proav-bench-") as folder:
        (clip,) = make_clips(folder, 1)
        for minutes in arguments.minutes:
            film = f"{folder}/film-{minutes:g}-minutes.mkv"
            make_film(clip, film, minutes)
            words = ["-m", "bench.data.film", "--measure", film, f"{folder}/data-{minutes:g}"]
            command = [sys.executable, *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(
                {
                    "minutes": minutes,
                    "film_megabytes": round(Path(film).stat().st_size / 1e6, 1),
                    **json.loads(done.stdout),
                }
            )
            print("  ".join(f"{key} {value}" for key, value in results[-1].items()))
    print(json.dumps({"bench": "film", "results": results}))


if __name__ == "__main__":
    main()
