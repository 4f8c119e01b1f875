"""Clients that never finish their requests.

    python -m bench.serve.slow_clients [serve settings: key=value ...]

Starts `serve run proav.serve:app` and opens connections that stop in the middle. There are three attacks:
half of the connections stop in the head of a request and half in its body; all stop in the body; large JSON
bodies lack their last byte. Meanwhile the benchmark requests /healthz and a clip of one step. It prints the
seconds that these took, the answers to the slow clients with their times, and the memory of the processes
that hold
connections: Ray Serve's proxy and the front. Ends with status 1 if /healthz or the clip was not answered in
time. Linux only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import time
from collections import Counter

import psutil
import requests

from bench.serve.throughput import started_server

PATIENCE_SECONDS = 30.0
"""An answer that takes longer counts as no answer."""
HEAD = (
    "POST /v1/videos HTTP/1.1\r\nHost: {host}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n"
)
MIB = 2**20


class SlowClients:
    """Connections that send part of a request and then wait until they are answered or closed."""

    def __init__(self, url: str) -> None:
        self.host = url.removeprefix("http://")
        self.answers: Counter = Counter()
        self.seconds: list[float] = []

    async def open(self, *, count: int, length: int, sent: int, whole_head: bool) -> list[asyncio.Task]:
        """Opens `count` connections that send an unfinished request.

        count: number of connections.
        length: bytes of the body, as the head declares them.
        sent: bytes of the body that are sent.
        whole_head: whether the head is sent; if not, only a part of it is, and no body.
        """
        head = HEAD.format(host=self.host, length=length).encode()
        data = head + b'\r\n{"prompt": "' + b"x" * (sent - 12) if whole_head else head
        tasks = [asyncio.create_task(self._one(data)) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks

    async def _one(self, data: bytes) -> None:
        began, status = time.monotonic(), "closed without an answer"
        host, port = self.host.split(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(data)
                await writer.drain()
                if line := await reader.readline():
                    status = line.split()[1].decode()
                    self.seconds.append(time.monotonic() - began)
                await reader.read()
            finally:
                writer.close()
        except asyncio.CancelledError:
            if status == "closed without an answer":
                status = "still open"
        except OSError as error:
            status = type(error).__name__
        self.answers[status] += 1


def healthz_seconds(url: str) -> float | None:
    """Seconds until /healthz answers 200; None if that takes too long."""
    began = time.monotonic()
    try:
        answer = requests.get(f"{url}/healthz", timeout=PATIENCE_SECONDS)
    except requests.RequestException:
        return None
    return round(time.monotonic() - began, 3) if answer.status_code == 200 else None


def clip_seconds(url: str) -> float | None:
    """Seconds from a request to the finished clip of one step; None if that takes too long."""
    began, job = time.monotonic(), None
    try:
        while time.monotonic() - began < PATIENCE_SECONDS:
            if job is None:
                answer = requests.post(f"{url}/v1/videos", json={"steps": 1}, timeout=PATIENCE_SECONDS)
                if answer.status_code == 200:
                    job = answer.json()["id"]
            else:
                found = requests.get(f"{url}/v1/videos/{job}", timeout=PATIENCE_SECONDS).json()
                if found["status"] == "completed":
                    return round(time.monotonic() - began, 3)
            time.sleep(0.05)
    except requests.RequestException:
        pass
    return None


def memory() -> dict[str, float]:
    """Resident MiB of the proxy and of the front of the server that this process has started."""
    found: Counter = Counter()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            words = " ".join(process.cmdline()[:1])
            for name, part in {"proxy": "ray::ProxyActor", "front": ":Front"}.items():
                if words.startswith("ray::") and part in words:
                    found[name] += process.memory_info().rss / MIB
    return {name: round(size) for name, size in found.items()}


async def attack(url: str, *, name: str, wait_seconds: float, **connections: list[dict]) -> dict:
    """Opens the slow connections, makes requests like other clients, and waits for answers to the slow ones.

    url: address of the server.
    name: name of the attack.
    wait_seconds: time after which the slow clients give up.
    connections: kinds=[arguments of `SlowClients.open`].
    """
    slow, before = SlowClients(url), await asyncio.to_thread(memory)
    tasks = [task for each in connections["kinds"] for task in await slow.open(**each)]
    began, peak, told = time.monotonic(), Counter(before), {}
    for what, ask in {"healthz_seconds": healthz_seconds, "clip_seconds": clip_seconds}.items():
        await asyncio.sleep(2.0)
        told[what] = await asyncio.to_thread(ask, url)
        peak |= Counter(await asyncio.to_thread(memory))
    while not all(task.done() for task in tasks) and time.monotonic() - began < wait_seconds:
        await asyncio.sleep(0.5)
        peak |= Counter(await asyncio.to_thread(memory))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(3.0)
    return {
        "attack": name, **told, "answers": dict(slow.answers),
        "answered_after_seconds": round(max(slow.seconds), 1) if slow.seconds else None,
        "memory_before": before, "memory_peak": dict(peak), "memory_after": await asyncio.to_thread(memory),
    }  # fmt: skip


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--bodies", type=int, default=10, help="large unfinished bodies")
    parser.add_argument("--body-bytes", type=int, default=40_000_000)
    parser.add_argument("--wait", type=float, default=60.0, help="seconds after which a slow client gives up")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the server")
    arguments = parser.parse_intermixed_args()
    half = arguments.connections // 2
    length = arguments.body_bytes
    small = [
        {"count": half, "length": 1000, "sent": 0, "whole_head": False},
        {"count": arguments.connections - half, "length": 1000, "sent": 100, "whole_head": True},
    ]
    bodies = [{"count": arguments.connections, "length": 1000, "sent": 100, "whole_head": True}]
    large = [{"count": arguments.bodies, "length": length, "sent": length - 1, "whole_head": True}]
    attacks = {
        f"{half} heads and {arguments.connections - half} bodies": small,
        f"{arguments.connections} bodies": bodies,
        f"{arguments.bodies} JSON bodies of {length} bytes": large,
    }
    with started_server(arguments.settings) as url:
        clip_seconds(url)
        rows = [
            asyncio.run(attack(url, name=name, wait_seconds=arguments.wait, kinds=kinds))
            for name, kinds in attacks.items()
        ]
    for row in rows:
        print(*(f"{name}: {value}" for name, value in row.items()), sep="\n  ")
    print(json.dumps({"rows": rows, "cpus": os.cpu_count()}))
    unanswered = [row for row in rows if None in (row["healthz_seconds"], row["clip_seconds"])]
    raise SystemExit(1 if unanswered else 0)


if __name__ == "__main__":
    main()
