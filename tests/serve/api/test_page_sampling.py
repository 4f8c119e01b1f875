"""Settings of sampling that the page has no field for: solver, shift of times and interval of guidance.

In a real browser. Jobs with such settings are made by the interface, and used by the page.
"""

import pytest
import requests

from proav.serve.on_ray.sampler import Sampler
from proav.serve.settings import ServeSettings
from tests.serve.conftest import Front

SETTINGS = {"solver": "heun", "schedule_shift": 2.5, "guidance_interval": [0.125, 0.8]}
FACTS = "document.querySelector('#clip-facts').innerText"
KEPT = "document.querySelector('#field-kept').checkVisibility() && document.querySelector('#kept').innerText"


@pytest.fixture(scope="module")
def served(tiny_checkpoint, tmp_path_factory):
    settings = ServeSettings(checkpoint=tiny_checkpoint, jobs_dir=str(tmp_path_factory.mktemp("jobs")))
    with Front(settings, Sampler(tiny_checkpoint, threads=1, device="cpu")) as front:
        yield front.url


@pytest.fixture
def shown(tab, served):
    """A function that makes a clip by the interface, with given fields, and shows it on the page."""

    def show(**fields) -> str:
        body = {"label": "rain", "seed": 5, "steps": 2, **fields}
        identity = requests.post(f"{served}/v1/videos", json=body, timeout=30).json()["id"]
        tab.evaluate(f"location.hash = '#{identity}'")
        tab.wait(
            "document.querySelector('#stage').dataset.state === 'clip'"
            f" && document.querySelector('#download').href.includes('{identity}')",
            seconds=60,
        )
        return identity

    return show


def clip(served, identity):
    return requests.get(f"{served}/v1/videos/{identity}/content", timeout=30).content


def test_a_clip_says_what_differs_from_the_models_defaults(tab, shown):
    shown(**SETTINGS)
    rows = "[...document.querySelectorAll('#clip-facts div')].map((row) => row.innerText.split('\\n'))"
    facts = {name: value for name, value in tab.evaluate(rows)}
    assert facts["Solver"] == "heun" and facts["Shift of times"] == "2.5"
    assert facts["Interval of guidance"] == "0.125 to 0.8"
    shown(solver="euler", schedule_shift=1)
    assert not any(name in tab.evaluate(FACTS) for name in ("Solver", "Shift", "Interval"))


def test_used_settings_make_the_same_clip_and_are_told_until_they_are_left_out(tab, shown, made, served):
    theirs = shown(**SETTINGS)
    assert tab.evaluate(KEPT) is False
    tab.click("#reuse")
    said = "Solver: heun; Shift of times: 2.5; Interval of guidance: 0.125 to 0.8."
    assert tab.evaluate(KEPT).endswith(said)
    ours = made()
    assert {name: ours[name] for name in SETTINGS} == SETTINGS and ours["seed"] == 5
    assert clip(served, ours["id"]) == clip(served, theirs)
    before = tab.evaluate("location.hash")
    tab.click("#again")
    tab.wait(f"location.hash !== '{before}'")
    again = requests.get(f"{served}/v1/videos/{tab.evaluate('location.hash.slice(1)')}", timeout=30).json()
    assert {name: again[name] for name in SETTINGS} == SETTINGS and again["seed"] != 5
    tab.click("#drop-kept")
    assert tab.evaluate(KEPT) is False and tab.evaluate("document.activeElement.id") == "generate"
    assert [made()[name] for name in SETTINGS] == ["euler", 1.0, [0.0, 1.0]]
    shown(**SETTINGS)
    tab.click("#reuse")
    shown(solver="euler")
    tab.click("#reuse")
    assert tab.evaluate(KEPT) is False  # that clip has the model's defaults


def test_the_most_steps_are_those_of_the_used_settings(tab, shown, refusal):
    shown(solver="heun")
    tab.click("#reuse")
    assert refusal("steps", "101") == "“101” does not fit: write a whole number from 1 to 100."
    assert refusal("steps", "many") == "“many” does not fit: write a whole number from 1 to 200."
    tab.click("#drop-kept")
    assert tab.evaluate("document.querySelector('#error-steps').hidden")
    assert refusal("steps", "201") == "“201” does not fit: write a whole number from 1 to 200."


def test_a_refusal_of_used_settings_stands_beside_them(tab, shown):
    """If the server has another model since the page was loaded."""
    shown(solver="heun")
    tab.evaluate(
        """(() => {
        window.ownFetch = window.fetch;
        window.fetch = (address, options) => {
          options?.body?.set?.("solver", "flow_map");
          return window.ownFetch(address, options);
        };
    })()"""
    )
    tab.click("#reuse")
    tab.click("#generate")
    tab.wait("!document.querySelector('#error-kept').hidden")
    tab.evaluate("window.fetch = window.ownFetch")
    told = "The server has another model now, which does not take this."
    assert tab.evaluate("document.querySelector('#error-kept').textContent") == told
    assert tab.evaluate("document.activeElement.id") == "drop-kept"
    tab.click("#drop-kept")
    assert not tab.evaluate("document.querySelector('#field-kept').checkVisibility()")
