"""How fast a server answers, and what it does with malformed requests.

    python -m bench.serve.throughput [--url URL] [--steps N] [serve settings: key=value ...]

Compares several clients at once with a single client: requests a second, their ratio, and p50 and p95 of the
time from request to mp4. Then sends malformed requests from a seeded generator and counts the statuses.
Starts `serve run proav.serve:app` on a free port unless --url names a server. Prints a table and one JSON
line. Ends with status 1 if a malformed request got a status of 500 or more, or an error that is not JSON.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from bench.helpers.own_processes import own_processes

ROOT = Path(__file__).parents[2]
START_SECONDS = 300.0
NAMES = (
    "prompt",
    "label",
    "task",
    "seed",
    "steps",
    "guidance_scale",
    "audio_guidance_scale",
    "guidance_interval",
    "solver",
    "schedule_shift",
    "num_windows",
    "seconds",
    "size",
    "model",
    "input_reference",
    "colour",
    "",
)
VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    2**70,
    1e308,
    "",
    " ",
    "a2v",
    "v2a",
    "heun",
    "0.2,0.8",
    "\ud800",
    "\x00",
    "9" * 5000,
    "NaN",
    "-0",
    [],
    {},
    [[1]],
    {"image_url": "data:,x"},
)
PATHS = (
    "/v1/videos/{}",
    "/v1/videos/{}/content",
    "/v1/videos/{}/content?variant={}",
    "/v1/videos?limit={}&order={}",
    "/v1/videos?after={}",
    "/v1/models/{}",
    "/page/{}",
    "/{}",
)
WORDS = (
    "..%2F..%2Fetc",
    "%00",
    "video_0",
    "-1",
    "1e9",
    "%F0%9F%98%80",
    "a" * 3000,
    "thumbnail",
    "%",
    "%ff",
    "'",
    "null",
)


@contextlib.contextmanager
def started_server(settings: list[str]) -> Iterator[str]:
    """Starts a server that ends with the block; yields its base URL."""
    with (
        socket.socket() as probe,
        tempfile.TemporaryDirectory(prefix="proav-bench-") as folder,
        own_processes(),
    ):
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        words = [
            Path(sys.executable).parent / "serve",
            "run",
            "proav.serve:app",
            f"port={port}",
            f"jobs_dir={folder}/jobs",
            *settings,
        ]
        with open(f"{folder}/log", "w") as log:
            environment = {**os.environ, "RAY_ADDRESS": "local"}
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while not is_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start:\n{Path(folder, 'log').read_text()}")
            time.sleep(0.5)
        yield url


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=30).status_code == 200
    except requests.RequestException:
        return False


def make_clip(session: requests.Session, url: str, order: dict) -> float:
    """Seconds from the request to the last byte of the mp4."""
    began = time.monotonic()
    answer = session.post(f"{url}/v1/videos", json=order)
    answer.raise_for_status()
    video = f"{url}/v1/videos/{answer.json()['id']}"
    while (job := (answer := session.get(video)).json())["status"] in ("queued", "in_progress"):
        # polls as often as the server advises, like OpenAI's client
        time.sleep(int(answer.headers["openai-poll-after-ms"]) / 1000)
    if job["status"] != "completed":
        sys.exit(f"a clip failed: {job['error']}")
    session.get(f"{video}/content").raise_for_status()
    return time.monotonic() - began


def measure(url: str, *, num_clients: int, num_requests: int, order_of: Callable[[int], dict]) -> dict:
    """Rates of `num_clients` clients that order `num_requests` clips together.

    Each client orders its next clip when it has the last one.

    url: address of the server.
    num_clients: number of clients.
    num_requests: clips of all clients together.
    order_of: returns the order of clip number n.
    """
    sessions = threading.local()

    def one(number: int) -> float:
        if not hasattr(sessions, "own"):
            sessions.own = requests.Session()
        return make_clip(sessions.own, url, order_of(number))

    began = time.monotonic()
    with ThreadPoolExecutor(num_clients) as pool:
        seconds = sorted(pool.map(one, range(num_requests)))
    whole = time.monotonic() - began
    percentile = statistics.quantiles(seconds, n=20, method="inclusive")
    return {
        "clients": num_clients, "requests": num_requests,
        "requests_per_second": round(num_requests / whole, 3),
        "p50_seconds": round(statistics.median(seconds), 3), "p95_seconds": round(percentile[18], 3),
    }  # fmt: skip


def malformed(randomness: random.Random) -> tuple[str, str, dict]:
    """(method, path, further arguments of requests.request) of one request that is probably wrong."""
    fields = {randomness.choice(NAMES): randomness.choice(VALUES) for _ in range(randomness.randint(0, 3))}
    kind = randomness.randrange(5)
    if kind == 0:
        return (
            "POST",
            "/v1/videos",
            {"data": json.dumps(fields), "headers": {"content-type": "application/json"}},
        )
    if kind == 1:
        body = bytearray(json.dumps(fields).encode())
        for _ in range(3):
            body[randomness.randrange(len(body))] = randomness.randrange(256)
        media_type = randomness.choice(
            [
                "application/json",
                "application/json; charset=x",
                "text/plain",
                "multipart/form-data",
                "multipart/form-data; boundary=x",
                "",
            ]
        )
        return "POST", "/v1/videos", {"data": bytes(body), "headers": {"content-type": media_type}}
    if kind == 2:
        form = {
            name: str(value).encode("utf-8", "replace")
            for name, value in fields.items()
            if name and value is not None
        }
        file = randomness.randbytes(randomness.choice([0, 10, 3000]))
        form["task"] = randomness.choice(["a2v", "v2a", "joint", "i2av"])
        return (
            "POST",
            "/v1/videos",
            {
                "data": form,
                "files": {
                    randomness.choice(["input_reference", "video"]): (
                        "x\u00e9.mp4",
                        b"\x00\x00\x00\x18ftypmp42" + file,
                    )
                },
            },
        )
    path = (
        randomness.choice(PATHS)
        .replace("{}", randomness.choice(WORDS), 1)
        .replace("{}", randomness.choice(WORDS))
    )
    method = randomness.choice(["GET", "GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS", "POST"])
    return (
        method,
        path,
        {"headers": {"range": randomness.choice(["bytes=0-", "bytes=x", "bytes=99999999999999999999-"])}},
    )


def fuzz(url: str, *, num_requests: int, seed: int) -> Counter:
    """Counts the statuses of the answers to malformed requests.

    An answer above 399 that is not a JSON error also counts as "not JSON". If a request is valid by chance,
    its clip is deleted again.
    """
    randomness, session, statuses = random.Random(seed), requests.Session(), Counter()
    for _ in range(num_requests):
        method, path, said = malformed(randomness)
        answer = session.request(method, url + path, **said)
        statuses[answer.status_code] += 1
        if (
            answer.status_code >= 400
            and method != "HEAD"
            and not answer.headers.get("content-type", "").startswith("application/json")
        ):
            statuses["not JSON"] += 1
        if method == "POST" and path == "/v1/videos" and answer.status_code == 200:
            session.delete(f"{url}/v1/videos/{answer.json()['id']}")
        if answer.status_code >= 500:
            print(f"{answer.status_code} for {method} {path} {str(said)[:300]}", file=sys.stderr)
    return statuses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="address of a running server (default: start one)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--requests",
        type=int,
        default=48,
        help="clips of all clients together; the single client orders half as many",
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings of the server, such as checkpoint=PATH"
    )
    arguments = parser.parse_intermixed_args()
    with (
        contextlib.nullcontext(arguments.url) if arguments.url else started_server(arguments.settings) as url
    ):
        labels = requests.get(f"{url}/v1/models").json()["data"][0]["labels"] or [""]
        order_of = lambda number: {
            "label": labels[number % len(labels)],
            "seed": number,
            "steps": arguments.steps,
        }
        measure(url, num_clients=arguments.clients, num_requests=arguments.clients, order_of=order_of)  # warm
        alone = measure(url, num_clients=1, num_requests=max(4, arguments.requests // 2), order_of=order_of)
        together = measure(
            url, num_clients=arguments.clients, num_requests=arguments.requests, order_of=order_of
        )
        statuses = fuzz(url, num_requests=arguments.malformed, seed=0) if arguments.malformed else Counter()
    ratio = together["requests_per_second"] / alone["requests_per_second"]
    print(f"{'clients':>8}{'requests/s':>12}{'p50 s':>8}{'p95 s':>8}")
    for row in (alone, together):
        print(
            f"{row['clients']:>8}{row['requests_per_second']:>12.2f}"
            f"{row['p50_seconds']:>8.2f}{row['p95_seconds']:>8.2f}"
        )
    print(f"together {ratio:.2f} times one at a time, {arguments.steps} steps, {os.cpu_count()} CPUs")
    print(
        f"{sum(count for status, count in statuses.items() if status != 'not JSON')} malformed: "
        + ", ".join(f"{count} x {status}" for status, count in statuses.most_common())
    )
    wrong = any(status == "not JSON" or status >= 500 for status in statuses)
    statuses = {str(status): count for status, count in statuses.items()}
    print(
        json.dumps(
            {
                "alone": alone,
                "together": together,
                "ratio": round(ratio, 3),
                "steps": arguments.steps,
                "malformed": statuses,
                "cpus": os.cpu_count(),
            }
        )
    )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
