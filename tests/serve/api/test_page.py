"""The page of the server: its files are whole and readable, and it works in a real browser.

The browser talks to a real server of a tiny model.
"""

import html.parser
import io
import json
import re
import time
import wave
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import requests

PAGE = Path(__file__).parents[3] / "proav" / "serve" / "api" / "page"
TEXTS = {path.name: path.read_text("utf-8") for path in PAGE.iterdir()}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}


class Tags(html.parser.HTMLParser):
    """All elements of a page, with a check that each is closed where it should be."""

    VOID = {"meta", "link", "input", "img"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_file_and_name_that_is_used_is_there():
    tags = Tags(TEXTS["index.html"]).found
    identities = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for _, attributes in tags:
        for key in ("for", "aria-describedby", "aria-labelledby"):
            assert set(attributes.get(key, "").split()) <= set(identities)
        for key in ("href", "src"):
            address = attributes.get(key, "")
            assert not re.match(r"(https?:)?//|/", address), address
            assert not address.startswith("page/") or address.removeprefix("page/") in TEXTS
            assert not address.startswith("#") or address[1:] in identities
    for text in SCRIPTS.values():
        assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= set(identities)
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(TEXTS)
        assert set(re.findall(r'"#(icon-[a-z]+)"', text)) <= set(identities)


def test_nothing_is_written_as_markup_by_scripts():
    """Text from a server or a label stays text."""
    for text in SCRIPTS.values():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


API_NAMES = re.compile(r"[a-z]+_[a-z_]+|\w=")
"""Names of the HTTP interface. They mean nothing to users of the page."""


def tone(path, *, seconds):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(int(16000 * seconds)) * 0.2)).astype("<i2").tobytes())


def luminance(colour):
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    blocks = re.findall(r":root \{(.*?)\}", TEXTS["style.css"], re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[0])) | (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[1])) if scheme else {}
    )
    texts = [
        ("ink", "paper"),
        ("ink", "card"),
        ("ink", "wash"),
        ("muted", "paper"),
        ("muted", "card"),
        ("accent", "paper"),
        ("paper", "accent"),
    ]
    texts += [("accent", "card"), ("warning", "card"), ("warning", "warning-wash"), ("screen-ink", "stage")]
    for pairs, least in ((texts, 4.5), ([("edge", "paper"), ("edge", "card"), ("accent", "wash")], 3.0)):
        for first, second in pairs:
            low, high = sorted((luminance(colours[first]), luminance(colours[second])))
            assert (high + 0.05) / (low + 0.05) >= least, (first, second)


def state_is(state):
    return f"document.querySelector('#stage').dataset.state === '{state}'"


def generate(tab, *, label="rain", seed="7", steps="3"):
    """Fills the form and waits until the clip is on the stage; returns its id.

    tab: the page in a browser.
    label, seed, steps: what the form's fields get.
    """
    tab.choose("#label", label)
    tab.fill("#seed", seed)
    tab.fill("#steps", steps)
    before = tab.evaluate("location.hash")
    tab.click("#generate")
    tab.wait(f"location.hash !== {json.dumps(before)} && {state_is('clip')}", seconds=60)
    return tab.evaluate("location.hash.slice(1)")


@pytest.fixture(scope="module")
def made(tab):
    return generate(tab)


def shown_error(tab, name):
    selector = f"#error-{name}"
    tab.wait(f"!document.querySelector('{selector}').hidden")
    return tab.evaluate(f"document.querySelector('{selector}').textContent")


def test_a_clip_is_made_and_plays_with_its_sound(tab, made, served):
    assert not tab.evaluate("video.paused")  # it starts by itself: the click on Generate allows that
    tab.wait("video.currentTime > 0.1")
    tab.wait(
        "video.videoWidth > 0 && video.webkitAudioDecodedByteCount > 0"
        " && video.webkitVideoDecodedByteCount > 0"
    )
    assert tab.evaluate("video.muted") is False
    job = requests.get(f"{served}/v1/videos/{made}", timeout=30).json()
    assert (job["label"], job["seed"], job["steps"]) == ("rain", 7, 3)
    with av.open(
        io.BytesIO(requests.get(f"{served}/v1/videos/{made}/content", timeout=30).content)
    ) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (1, 1)
    width, height = map(int, job["size"].split("x"))
    assert tab.evaluate("[video.videoWidth, video.videoHeight]") == [width, height]


def test_stage_says_what_the_clip_is(tab, made):
    facts = tab.evaluate("document.querySelector('#clip-facts').innerText")
    assert re.search(r"Seed\s+7\b", facts) and re.search(r"Steps\s+3\b", facts) and "Took" in facts
    assert tab.evaluate("document.querySelector('#clip-name').textContent") == "rain"
    link = tab.evaluate("[download.href, download.download]")
    assert link[0].endswith(f"/v1/videos/{made}/content") and link[1] == "rain-seed-7.mp4"


def test_frames_and_spectrogram_lie_over_one_time_axis(tab, made):
    tab.wait("spectrogram.naturalWidth > 1 && spectrogram.checkVisibility()")
    tab.wait(
        """(() => {
        const sheet = document.querySelector("#frames");
        const { data } = sheet.getContext("2d").getImageData(0, 0, sheet.width, sheet.height);
        return data.filter((value, place) => place % 4 === 3 && value > 0).length"""
        """ > 0.9 * sheet.width * sheet.height;
    })()"""
    )
    tab.evaluate("video.pause()")
    tab.click("#tracks")
    seconds = tab.evaluate("Number(tracks.getAttribute('aria-valuemax'))")
    # this works only if the server answers ranges
    tab.wait(f"Math.abs(video.currentTime - {seconds / 2}) < 0.02 * {seconds} && !video.seeking")
    assert tab.evaluate("parseFloat(playhead.style.left)") == pytest.approx(50, abs=2)
    tab.evaluate("tracks.focus()")
    tab.press("Home")
    tab.wait("video.currentTime === 0")
    tab.press("ArrowRight")
    tab.wait("video.currentTime > 0.1 && tracks.getAttribute('aria-valuenow') > 0.1")
    tab.press(" ")
    tab.wait("!video.paused && play.innerText.trim() === 'Pause'")
    start = tab.evaluate("parseFloat(playhead.style.left)")
    tab.wait(f"parseFloat(playhead.style.left) !== {start}")


def test_gallery_shows_the_clip_and_plays_it(tab, made, served):
    first = generate(tab, label="speech", seed="8")
    card = f'.clip[data-id="{made}"]'
    tab.wait(f"document.querySelector('{card} img').naturalWidth > 0")
    spoken = tab.evaluate(f"document.querySelector('{card} .pick').getAttribute('aria-label')")
    assert spoken.startswith("Play rain, seed 7, picture and sound, ")
    assert tab.evaluate(f"document.querySelector('{card} .task').textContent") == "Picture and sound"
    assert re.search(r"\d\d:\d\d", tab.evaluate(f"document.querySelector('{card} .when').textContent"))
    tab.click(f"{card} .pick")
    tab.wait(f"location.hash === '#{made}' && !video.paused && video.currentTime > 0")
    assert tab.evaluate("document.querySelector('.pick[aria-current]').closest('.clip').dataset.id") == made
    # The question stands for a minute, not for four seconds: a browser may be slow.
    tab.evaluate("window.setTimeout = ((later) => (act, wait) => later(act, 15 * wait))(setTimeout)")
    tab.click(f'.clip[data-id="{first}"] .remove')
    assert (
        tab.evaluate(f"""document.querySelector('.clip[data-id="{first}"] .question').textContent""")
        == "Delete?"
    )
    tab.click(f'.clip[data-id="{first}"] .remove')
    tab.wait(f"""!document.querySelector('.clip[data-id="{first}"]')""")
    tab.open("about:blank")
    tab.open(f"{served}/#{made}")
    tab.wait(f"{state_is('clip')} && document.querySelector('#clip-name').textContent === 'rain'")


def test_refusal_stands_at_its_field(tab, made):
    for field, name, wrong in (
        ("#seed", "seed", "abc"),
        ("#steps", "steps", "0"),
        ("#guidance", "guidance", "-1"),
        ("#audio-guidance", "audio-guidance", "31"),
    ):
        before = tab.evaluate(f"document.querySelector('{field}').value")
        tab.fill(field, wrong)
        tab.click("#generate")
        told = shown_error(tab, name)
        assert f"“{wrong}”" in told and "write a" in told and not API_NAMES.search(told)
        assert tab.evaluate(f"document.querySelector('{field}').getAttribute('aria-invalid')") == "true"
        assert tab.evaluate("'#' + document.activeElement.id") == field
        tab.fill(field, before)
        assert tab.evaluate(f"document.querySelector('#error-{name}').hidden")


def test_tasks_say_what_is_given(tab):
    names = tab.evaluate("document.querySelector('#tasks').innerText").split("\n")
    assert [name.strip() for name in names if name.strip()] == [
        "Picture and sound", "Picture to your sound", "Sound to your picture",
    ]  # fmt: skip


def test_picture_to_a_given_sound(tab, made, tmp_path):
    tab.click('#tasks input[value="a2v"]')
    tab.click("#generate")
    assert "Choose a file" in shown_error(tab, "file")
    (tmp_path / "notes.txt").write_text("no sound at all\n" * 99)
    tab.give_file("#file", str(tmp_path / "notes.txt"))
    tab.click("#generate")
    tab.wait(
        "!document.querySelector('#error-file').hidden"
        " && !/Choose/.test(document.querySelector('#error-file').textContent)"
    )
    assert not API_NAMES.search(shown_error(tab, "file"))
    tone(tmp_path / "tone.wav", seconds=0.1)
    tab.give_file("#file", str(tmp_path / "tone.wav"))
    tab.click("#generate")
    tab.wait("/0.1 s of sound/.test(document.querySelector('#error-file').textContent)")
    told = shown_error(tab, "file")
    assert told.startswith("The file holds") and not API_NAMES.search(told)
    tone(tmp_path / "tone.wav", seconds=2)
    tab.give_file("#file", str(tmp_path / "tone.wav"))
    generate(tab, seed="9")
    assert "picture to your sound" in tab.evaluate("document.querySelector('#clip-facts').innerText")
    before = tab.evaluate("location.hash")
    tab.click("#again")
    tab.wait(f"location.hash !== {json.dumps(before)} && {state_is('clip')}", seconds=60)
    tab.click('#tasks input[value="joint"]')


def test_a_file_that_is_dropped_anywhere_is_given(tab, made, tmp_path):
    """If the page did not take the file, the browser would open it in place of the page."""
    tone(tmp_path / "dropped.wav", seconds=1)
    address = tab.evaluate("location.href")
    for place in ("h1", "#field-file"):
        tab.drop_file(place, str(tmp_path / "dropped.wav"))
        tab.wait("file.files.length === 1 && file.files[0].name === 'dropped.wav'")
        assert tab.evaluate("document.querySelector('#tasks input:checked').value") == "a2v"
        tab.evaluate("file.value = ''")
    time.sleep(0.3)
    assert tab.evaluate("location.href") == address
    tab.click('#tasks input[value="joint"]')


@contextmanager
def busy_server(served, *, num_jobs):
    """Up to num_jobs long jobs before ours, or as many as the queue takes.

    Their step counts differ, so that they cannot share a batch.
    """
    identities = []
    try:
        for steps in range(1000, 1000 - num_jobs, -1):
            answer = requests.post(f"{served}/v1/videos", json={"steps": steps}, timeout=30)
            if answer.status_code == 429:
                break
            identities.append(answer.json()["id"])
        yield
    finally:
        for identity in identities:
            requests.delete(f"{served}/v1/videos/{identity}", timeout=30)


def test_clip_that_waits_is_cancelled_by_one_press(tab, made, served):
    before = tab.evaluate("location.hash")
    with busy_server(served, num_jobs=5):
        tab.click("#generate")
        tab.wait(f"location.hash !== {json.dumps(before)} && {state_is('working')}")
        identity = tab.evaluate("location.hash.slice(1)")
        assert tab.evaluate("discard.textContent") == "Cancel"
        tab.click("#discard")
        tab.wait(f"""!document.querySelector('.clip[data-id="{identity}"]')""")
    assert requests.get(f"{served}/v1/videos/{identity}", timeout=30).status_code == 404


RECORD_REFUSALS = """
    window.refusals = [];
    new MutationObserver(([{ target }]) => refusals.push(target.textContent))
        .observe(document.querySelector("#error-form"), { childList: true });
"""
"""Keeps all that stands at the button, since the page counts the seconds down."""


def test_full_queue_is_reported_with_the_time_to_come_again(tab, made, served):
    tab.evaluate(RECORD_REFUSALS)
    with busy_server(served, num_jobs=100):
        for _ in range(10):  # if a job has just left the queue, ours is taken and fills it again
            before = tab.evaluate("location.hash")
            tab.click("#generate")
            tab.wait(
                f"!document.querySelector('#error-form').hidden || location.hash !== {json.dumps(before)}"
            )
            if not tab.evaluate("document.querySelector('#error-form').hidden"):
                break
        refusals = tab.evaluate("refusals")
        assert any(re.search(r"queue is full.*Try again in \d+ s\.", words) for words in refusals), refusals
        assert tab.evaluate("document.querySelector('#generate').getAttribute('aria-disabled')") == "false"
    tab.wait("document.querySelectorAll('.clip:not([data-status=completed])').length === 0")


def test_clips_of_following_seeds_are_made_together(tab, made):
    tab.choose("#count", "4")
    generate(tab, seed="40")
    tab.wait("document.querySelectorAll('.clip:not([data-status=completed])').length === 0")
    seeds = tab.evaluate("[...document.querySelectorAll('.clip .seed')].map((seed) => seed.textContent)")
    assert {"seed 40", "seed 41", "seed 42", "seed 43"} <= set(seeds)
    tab.choose("#count", "1")


def test_server_that_does_not_answer_is_reported_and_awaited(tab, made):
    def network(offline):
        tab.send(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    network(True)
    tab.click("#generate")
    tab.wait("/does not answer/.test(document.querySelector('#connection:not([hidden])')?.textContent)")
    assert "does not answer" in shown_error(tab, "form")  # where the user looks
    network(False)
    tab.wait("document.querySelector('#connection').hidden", seconds=20)
    assert tab.evaluate("document.querySelector('#error-form').hidden")


def test_generate_says_so_if_the_server_never_answered(tab, made, served):
    tab.send("Network.setBlockedURLs", urls=["*/v1/*"])
    tab.open("about:blank")
    tab.open(served + "/")
    tab.click("#generate")
    assert "does not answer" in shown_error(tab, "form")
    tab.send("Network.setBlockedURLs", urls=[])
    tab.wait("document.querySelector('#label').options.length > 1", seconds=20)


def test_narrow_screen_needs_no_sideways_scrolling(tab, made):
    for width in (320, 390, 820):
        tab.screen(width=width, height=844, phone=width < 500)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.screen(width=1280, height=900)


def test_page_is_quiet_and_asks_nobody_else(tab, made, served):
    """The last test of this file, since it looks at what all others did."""
    time.sleep(0.2)
    tab.evaluate("1")
    expected = r"status of 4\d\d|ERR_INTERNET_DISCONNECTED|ERR_BLOCKED_BY_CLIENT"
    assert [problem for problem in tab.problems if not re.search(expected, problem)] == []
    assert {
        address
        for address in tab.addresses
        if not address.startswith((served + "/", "data:", "about:", "blob:"))
    } == set()
