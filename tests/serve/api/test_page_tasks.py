"""The page of a model that was trained for the masked tasks, in a real browser."""

import pytest

from proav.media.container import write_clip
from proav.serve.on_ray.sampler import Sampler
from proav.serve.settings import ServeSettings
from tests.serve.conftest import Front
from tests.synthetic_clips import make_clip


@pytest.fixture(scope="module")
def served(masked_checkpoint, tmp_path_factory):
    settings = ServeSettings(checkpoint=masked_checkpoint, jobs_dir=str(tmp_path_factory.mktemp("jobs")))
    with Front(settings, Sampler(masked_checkpoint, threads=1, device="cpu")) as front:
        yield front.url


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("clips") / "clip.mp4")
    write_clip(path, make_clip(1, seconds=1.2))
    return path


def shown(tab, *names):
    return [tab.evaluate(f"document.querySelector('#field-{name}').checkVisibility()") for name in names]


def test_each_task_shows_its_own_fields(tab):
    for task, expected in {
        "joint": [False, False, False, True],
        "i2av": [True, False, False, True],
        "continue": [True, False, True, False],
        "inpaint": [True, True, False, False],
    }.items():
        tab.click(f'#tasks input[value="{task}"]')
        assert shown(tab, "file", "span", "windows", "length") == expected, task
        assert shown(tab, "label", "texts") == [True, False], task  # this server encodes no texts


def test_a_clip_from_a_first_picture(tab, made, file):
    tab.click('#tasks input[value="i2av"]')
    tab.give_file("#file", file)
    assert made()["task"] == "i2av"
    assert "from a first picture" in tab.evaluate("document.querySelector('#clip-facts').innerText")


def test_a_clip_goes_on_as_often_as_is_asked(tab, refusal, made, file):
    tab.click('#tasks input[value="continue"]')
    tab.give_file("#file", file)
    assert refusal("windows", "33") == "“33” does not fit: write a whole number from 1 to 32."
    tab.fill("#windows", "2")
    assert tab.evaluate("document.querySelector('#error-windows').hidden")
    job = made()
    assert (job["task"], job["num_windows"], job["seconds"]) == ("continue", 2, "2")
    tab.wait("video.duration > 1.9 && video.duration < 2.2")
    axis = "[tracks.getAttribute('aria-valuemax'), document.querySelector('#clock-end').textContent]"
    assert tab.evaluate(axis) == ["2", "2.00"]
    marks = tab.evaluate("document.querySelector('#seconds').innerText").split()
    assert marks[0] == "0" and marks[-2:] == ["2", "s"]
    tab.click('#tasks input[value="joint"]')
    made()
    assert tab.evaluate(axis) == ["0.8", "0.80"]


def test_a_clip_has_the_length_that_is_asked(tab, refusal, made, file):
    tab.click('#tasks input[value="v2a"]')
    tab.give_file("#file", file)
    hints = "['#length-hint', '#file-hint'].map((name) => document.querySelector(name).textContent)"
    assert tab.evaluate(hints) == ["0.8 if left empty, at most 13.2.", "Its first 0.8 seconds are used."]
    assert refusal("length", "14") == "“14” does not fit: write a number from 0.2 to 13.2, or nothing."
    tab.fill("#length", "1.4")
    assert tab.evaluate(hints)[1] == "Its first 1.4 seconds are used."
    tab.click("#generate")  # the file has 1.2 seconds
    tab.wait("!document.querySelector('#error-file').hidden")
    assert "at least 7 frames" in tab.evaluate("document.querySelector('#error-file').textContent")
    tab.fill("#length", "1.2")
    job = made()
    assert (job["task"], job["seconds"], job["num_frames"]) == ("v2a", "1.2", 6)
    tab.wait("video.duration > 1.1 && video.duration < 1.3")
    assert "Length\n1.2 s" in tab.evaluate("document.querySelector('#clip-facts').innerText")
    tab.fill("#length", "")
    tab.click("#reuse")
    assert tab.evaluate("document.querySelector('#length').value") == "1.2"
    tab.fill("#length", "")
    tab.click('#tasks input[value="joint"]')


def test_a_part_is_made_anew(tab, made, file):
    tab.click('#tasks input[value="inpaint"]')
    tab.give_file("#file", file)
    for begin, end in (("", ""), ("0.4", "0.2"), ("0", "9")):
        tab.fill("#span-begin", begin)
        tab.fill("#span-end", end)
        tab.click("#generate")
        tab.wait("!document.querySelector('#error-span').hidden")
        told = tab.evaluate("document.querySelector('#error-span').textContent")
        assert told.startswith("Write where the part begins and ends, in seconds from 0 to 0.8")
        assert tab.evaluate("document.activeElement.id") == "span-begin"
    tab.fill("#span-begin", "0.2")
    tab.fill("#span-end", "0.4")
    tab.choose("#stream", "audio")
    job = made()
    assert (job["task"], job["span"], job["stream"]) == ("inpaint", [0.2, 0.4], "audio")
    facts = tab.evaluate("document.querySelector('#clip-facts').innerText")
    assert "0.2 to 0.4 s, sound" in facts
    tab.click('#tasks input[value="joint"]')
    tab.click("#again")  # puts the job's settings back into the form
    tab.wait("document.querySelector('#tasks input:checked').value === 'inpaint'")
    values = "[document.querySelector('#span-begin').value, document.querySelector('#stream').value]"
    assert tab.evaluate(values) == ["0.2", "audio"]
