"""How long an outage a frozen sampler causes.

    python -m bench.serve.frozen_sampler [serve settings: key=value ...]

Starts `serve run proav.serve:app` and stops the sampler's process with SIGSTOP, once in the middle of a clip
and once while it is idle. Measures the seconds until /healthz says 503 and until a clip is finished again.
Prints a line for each case and one JSON line. Ends with status 1 if no clip is finished again. Linux only.
"""

import argparse
import contextlib
import json
import os
import signal
import time

import psutil
import requests

from bench.serve.throughput import started_server

PATIENCE_SECONDS = 900.0
POLL_SECONDS = 0.2


def sampler() -> psutil.Process:
    """The sampler's process in the server that this process started."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            words = process.cmdline()
            if words and words[0].startswith("ray::ServeReplica") and ":Sampler" in words[0]:
                return process
    raise SystemExit("the server has no sampler")


def ask(url: str, **order: int) -> dict | None:
    """The server's JSON answer; None if it refuses or takes over a minute. With an order, sends a POST."""
    try:
        answer = requests.request("POST" if order else "GET", url, json=order or None, timeout=60)
    except requests.RequestException:
        return None
    return answer.json() if answer.status_code == 200 else None


def create(url: str, steps: int) -> str | None:
    """Id of a new job; None if the server does not accept it."""
    return (ask(f"{url}/v1/videos", steps=steps) or {}).get("id")


def status(url: str, job: str) -> str | None:
    return (ask(f"{url}/v1/videos/{job}") or {}).get("status")


def freeze(url: str, *, busy: bool, steps: int) -> dict:
    """Seconds from SIGSTOP until /healthz fails, until the process is killed and until a clip is finished."""
    job = create(url, steps) if busy else None
    while busy and status(url, job) != "in_progress":
        time.sleep(0.02)
    if not busy:
        time.sleep(15.0)  # until the last sign of life is too old for /healthz
    process, began = sampler(), time.monotonic()
    process.send_signal(signal.SIGSTOP)
    told: dict = {"frozen": "in the middle of a clip" if busy else "idle", "unhealthy_after_seconds": None}
    while time.monotonic() - began < PATIENCE_SECONDS:
        passed = round(time.monotonic() - began, 1)
        if told["unhealthy_after_seconds"] is None and not ask(f"{url}/healthz"):
            told["unhealthy_after_seconds"] = round(time.monotonic() - began, 1)
        if "killed_after_seconds" not in told and not process.is_running():
            told["killed_after_seconds"] = passed
        job = job or create(url, 1)
        if job and status(url, job) == "completed":
            return {**told, "clip_after_seconds": round(time.monotonic() - began, 1)}
        time.sleep(POLL_SECONDS)
    return {**told, "clip_after_seconds": None}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--steps", type=int, default=200, help="steps of the clip that is interrupted")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the server")
    arguments = parser.parse_intermixed_args()
    with started_server(arguments.settings) as url:
        rows = []
        for busy in (True, False):
            rows.append(freeze(url, busy=busy, steps=arguments.steps))
            print(", ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    print(json.dumps({"rows": rows, "cpus": os.cpu_count()}))
    raise SystemExit(1 if any(row["clip_after_seconds"] is None for row in rows) else 0)


if __name__ == "__main__":
    main()
