"""A real Chromium for tests, steered over its DevTools protocol.

Clicks and keys are real, and all that the page says or fetches is recorded. It is no general driver: it has
one tab, one thread, and only the commands that tests of proav's pages need.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " "), "ArrowRight": (39, ""), "Home": (36, "")}


def chromium_or_skip() -> str:
    """The path of a Chromium; where none is installed, the test is skipped and says so."""
    found = next((found for name in NAMES if (found := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine; expected one of {', '.join(NAMES)} on PATH")
    return found


@contextmanager
def open_browser(binary: str, *, width: int = 1280, height: int = 900) -> Iterator["Tab"]:
    """A headless browser with an empty profile and one tab. It ends with the block."""
    with tempfile.TemporaryDirectory(prefix="proav-browser-", ignore_cleanup_errors=True) as profile:
        words = [
            binary,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
        ]
        words += [
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        socket = None
        try:
            port, path = _wait_for_port(Path(profile) / "DevToolsActivePort", process)
            socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, max_queue=None, compression=None)
            yield Tab(socket)
        finally:
            # The browser is ended first: closing the socket would wait while events of a page are unread.
            # Its helper processes are ended too, since they would go on writing to the profile.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if socket is not None:
                socket.close()


def _wait_for_port(file: Path, process: subprocess.Popen) -> tuple[str, str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended at once with status {process.returncode}"
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return lines[0], lines[1]
        time.sleep(0.05)
    raise AssertionError("the browser opened no DevTools port within 60 s")


class Tab:
    """One page in the browser.

    problems: what the console, the log and uncaught errors said.
    addresses: every address that the page asked for.
    """

    def __init__(self, socket) -> None:
        self._socket, self._last, self._session = socket, 0, None
        self.problems: list[str] = []
        self.addresses: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict:
        """Sends one command and returns its result. Events that come meanwhile are recorded."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer:
                self._record(answer["method"], answer["params"])

    def _record(self, method: str, event: dict) -> None:
        if method == "Network.requestWillBeSent":
            self.addresses.append(event["request"]["url"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.problems.append(
                " ".join(str(part.get("value", part.get("description"))) for part in event["args"])
            )
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, (
            result["exceptionDetails"].get("exception", {}).get("description")
        )
        return result["result"].get("value")

    def wait(self, expression: str, *, seconds: float = 20) -> Any:
        """Waits until the expression is true and returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {expression}\n{self.problems}"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """Presses the mouse on the middle of the element, once it stands still. Nothing may cover it."""
        place = self.evaluate(
            f"""(async () => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const frame = () => new Promise(requestAnimationFrame);
            let box = element.getBoundingClientRect(), still = 0;
            while (still < 3) {{
                await frame();
                const now = element.getBoundingClientRect();
                still = now.x === box.x && now.y === box.y ? still + 1 : 0;
                box = now;
            }}
            const x = box.x + box.width / 2, y = box.y + box.height / 2;
            const hit = document.elementFromPoint(x, y);
            return {{x, y, hit: element.contains(hit) || hit?.closest("label")?.contains(element)"""
            f""" ? "" : hit?.outerHTML ?? "nothing"}};
        }})()"""
        )
        assert not place["hit"], f"{selector} is covered by {place['hit'][:200]}"
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=place["x"], y=place["y"], button="left", clickCount=1
            )

    def press(self, key: str) -> None:
        code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def fill(self, selector: str, text: str) -> None:
        """Replaces the text of a field, as typing does."""
        self.evaluate(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); "
            f"field.focus(); field.select(); }})()"
        )
        self.send("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        self.evaluate(f"""(() => {{
            const select = document.querySelector({json.dumps(selector)});
            select.value = {json.dumps(value)};
            select.dispatchEvent(new Event("input", {{bubbles: true}}));
            select.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()""")

    def give_file(self, selector: str, path: str) -> None:
        document = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[path])

    def drop_file(self, selector: str, path: str) -> None:
        """Drops a file of this machine on an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
        x, y = (self.evaluate(box)[name] + 5 for name in ("x", "y"))
        data = {"items": [], "files": [path], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screen(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Sets the window. Animations are off, so that what is clicked stands still.

        width, height: in CSS pixels.
        dark: the colour scheme is dark.
        phone: the device is a phone with two pixels per CSS pixel.
        """
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send(
            "Emulation.setEmulatedMedia",
            features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}],
        )

    def screenshot(self, path: str, *, whole: bool = True) -> None:
        """Writes a PNG of the page. `whole` includes what lies below the window."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))
