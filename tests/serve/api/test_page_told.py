"""The page of a model with several labels and a text as conditions, in a real browser."""

import pytest
import requests

from proav.serve.on_ray.sampler import Sampler
from proav.serve.settings import read_settings
from tests.serve.conftest import Front
from tests.tiny import save_tiny_stdit, tiny_config

SETTINGS = {"encoders": "{caption: tests.serve.queue.test_told:encode}"}
FACTS = "document.querySelector('#clip-facts').innerText"
CHOSEN = "[...document.querySelectorAll('#labels select')].map((select) => select.value)"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    checkpoint = save_tiny_stdit(str(folder), tiny_config("stdit.vectors={caption: 2, words: [2, 2]}"))
    settings = read_settings({"checkpoint": checkpoint, "jobs_dir": str(folder / "jobs"), **SETTINGS})
    with Front(settings, Sampler(checkpoint, threads=1, device="cpu")) as front:
        yield front.url


def test_labels_are_added_and_removed(tab):
    assert tab.evaluate(CHOSEN) == ["rain"]
    tab.click("#add-label")
    assert tab.evaluate(CHOSEN) == ["rain", "speech"]  # the first that is not chosen yet
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Another label"
    assert not tab.evaluate("document.querySelector('#add-label').checkVisibility()")  # the model has two
    tab.click("#labels button")
    assert tab.evaluate(CHOSEN) == ["rain"]
    assert tab.evaluate("document.activeElement.id") == "add-label"


def test_only_vectors_that_the_server_encodes_have_a_field(tab):
    fields = "[...document.querySelectorAll('#texts label')].map((one) => one.innerText.trim())"
    assert tab.evaluate(fields) == ["Caption"]


def test_a_clip_is_made_for_its_labels_and_its_text(tab, made):
    tab.choose("#label", "speech")
    tab.click("#add-label")
    tab.fill("#texts textarea", " A glass <b>falls</b> ")
    job = made()
    assert job["label"] == "speech;rain" and job["texts"] == {"caption": "A glass <b>falls</b>"}
    assert tab.evaluate("document.querySelector('#clip-name').textContent") == "speech, rain"
    assert "Caption\nA glass <b>falls</b>" in tab.evaluate(FACTS)


def test_a_clip_of_a_text_alone_is_called_by_it(tab, made):
    tab.click("#labels button")
    tab.choose("#label", "")
    job = made()
    assert job["label"] is None and job["texts"] == {"caption": "A glass <b>falls</b>"}
    assert tab.evaluate("document.querySelector('#clip-name').textContent") == "A glass <b>falls</b>"
    name = tab.evaluate("document.querySelector('#download').download")
    assert name == f"a-glass-b-falls-b-seed-{job['seed']}.mp4"


def test_a_clip_of_neither_has_no_condition(tab, made):
    tab.fill("#texts textarea", "")
    job = made()
    assert job["label"] is None and "texts" not in job


def test_settings_of_a_clip_come_back(tab, made, served):
    first = requests.get(f"{served}/v1/videos?order=asc", timeout=30).json()["data"][0]
    tab.click(f'.clip[data-id="{first["id"]}"] .pick')
    tab.click("#reuse")
    assert tab.evaluate(CHOSEN) == ["speech", "rain"]
    assert tab.evaluate("document.querySelector('#texts textarea').value") == "A glass <b>falls</b>"
    again = made()
    assert [again[key] for key in ("label", "texts", "seed")] == [
        first[key] for key in ("label", "texts", "seed")
    ]


def test_narrow_screens_need_no_sideways_scrolling(tab):
    """The last test of this file, since it looks at what all others did."""
    for width in (320, 820):
        tab.screen(width=width, height=844, phone=width < 500)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.problems == []
