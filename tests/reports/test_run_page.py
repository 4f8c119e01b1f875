"""The report pages are whole, work offline, escape text and play in a real browser.

They also name what is missing or damaged.
"""

import base64
import html.parser
import io
import json
import re
from fractions import Fraction

import av
import numpy as np
import pytest

from proav.config.reading import config_from_dict
from proav.reports.kit.figures import _mel_row, curve
from proav.reports.kit.page import element, metric_name, number
from proav.reports.run_files import read_curves
from proav.reports.run_page import write_report
from tests.browser import chromium_or_skip, open_browser

HOSTILE = "<script>alert(1)</script>\"'&"


def small_config(run_dir):
    return config_from_dict(
        {
            "name": "small",
            "run_dir": str(run_dir),
            "clip": {"num_frames": 8, "fps": 5, "height": 64, "width": 64},
            "mel": {"num_bins": 64, "hop": 100},
            "mdsa": {"plane_size": 8, "width": 64, "bi_block": {"block_size": 4}, "audio_input": "native"},
            "data": {"segment_seconds": 2.0},
        }
    )


def write_mp4(path, *, seed=0, seconds=1.6, fps=5, size=64, rate=16000):
    """Writes a coloured square that moves, and a tone that rises.

    PyAV alone writes the file, so the page is tested with files that proav has not written.

    path: the file to write
    seed: decides the colours and the tone's lowest frequency
    seconds, fps, size, rate: length, frames per second, rows and columns in pixels, samples per second
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    background, square = rng.integers(30, 220, (2, 3))
    with av.open(str(path), "w", format="mp4") as container:
        video, audio = container.add_stream("libx264", rate=fps), container.add_stream("aac", rate=rate)
        video.width = video.height = size
        video.pix_fmt, audio.layout = "yuv420p", "mono"
        for index in range(round(seconds * fps)):
            picture = np.broadcast_to(background, (size, size, 3)).astype(np.uint8).copy()
            left = 4 + 6 * index % (size - 16)
            picture[20:36, left : left + 16] = square
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
        times = np.arange(round(seconds * rate)) / rate
        wave = (0.3 * np.sin(2 * np.pi * (200 + 300 * seed + 600 * times) * times)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode())


def write_run(run, *, num_samples=3):
    """What a small run leaves, without its weights and shards."""
    lines = []
    for index in range(num_samples):
        name = f"{index // 1000:06d}/{index:09d}.mp4"
        write_mp4(run / "samples" / name, seed=index)
        label = HOSTILE if index == 0 else ["waterfall", "dog barking", "sea"][index % 3]
        settings = {"seed": 7, "task": "joint", "label": label, "steps": 30, "guidance_scale": 1.5}
        lines.append(
            json.dumps({"index": index, "path": name, **settings, "checkpoint": "a1" * 32, "seconds": 1.6})
        )
    (run / "samples" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    for index in range(2):
        write_mp4(run / "eval" / "reconstructions" / f"{index:03d}_real.mp4", seed=index)
        write_mp4(run / "eval" / "reconstructions" / f"{index:03d}_reconstructed.mp4", seed=index + 1)
    protocol = "held-out clips, one window each, EMA weights, float32"
    metrics = {
        "protocol": {
            "mdsa_checkpoint": "a1" * 32,
            "stdit_checkpoint": None,
            "settings": {"split": "validation"},
        },
        "reconstruction": {
            "psnr_db": 21.53,
            "psnr_mean_colour_db": 12.1,
            "mel_error_db": 6.2,
            "num_clips": 32,
            "protocol": protocol,
        },
        "stdit": {
            "loss": 0.71,
            "loss_at_initialization": 1.99,
            "protocol": protocol,
            "per_task": {"joint": 0.7, "a2v": 0.61},
        },
        "seeds": [0, 1],
    }
    (run / "eval" / "metrics.json").write_text(json.dumps(metrics))
    rng = np.random.default_rng(0)
    for stage, first in (("mdsa", 9.0), ("stdit", 2.0)):
        reports = [
            {
                "clips": 64 * k,
                "step": 8 * k,
                "loss": first / k + 0.4,
                "mel": 3.0 / k,
                "clips_per_second": 21 + rng.random(),
                "device": "cpu",
            }
            for k in range(1, 80)
        ]
        card = {
            "format": 1,
            "kind": stage,
            "clips": 5056,
            "hash": "a1" * 32,
            "versions": {"proav": "0.1.0", "torch": "2.13.0"},
        }
        folder = run / stage / "checkpoints" / "clips-000005056"
        folder.mkdir(parents=True)
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
        (folder / "checkpoint.json").write_text(json.dumps(card))
        (run / stage / "checkpoints" / "latest").write_text("clips-000005056\n")


class Page(html.parser.HTMLParser):
    """Tags of a page in order, with a check that every element is closed where it should be."""

    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    path = write_report(small_config(run))
    return run, (run / "report.html").read_text("utf-8"), path


def test_page_is_whole_and_fetches_nothing(whole_run):
    run, text, path = whole_run
    assert path == str(run / "report.html")
    page = Page(text)
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert not re.match(r"\s*(https?:)?//", attributes.get(key) or "", re.I)
    assert "default-src 'none'" in next(
        meta["content"] for meta in page.all("meta") if meta.get("http-equiv")
    )
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|['\"]?data:)", text)
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    assert {link["href"][1:] for link in page.all("a")} <= set(identities)


def test_every_video_decodes_from_the_page(whole_run):
    _, text, _ = whole_run
    videos = Page(text).all("video")
    assert len(videos) == 3 + 4
    for video in videos:
        assert video["aria-label"] and "controls" in video and "loop" in video and video["class"] == "pixels"
        content = base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,"))
        with av.open(io.BytesIO(content)) as container:
            assert len([frame for frame in container.decode(video=0)]) == 8


def test_pictures_carry_descriptions(whole_run):
    _, text, _ = whole_run
    drawings = Page(text).all("svg")
    assert len(drawings) >= 3 + 4 + 4
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in drawings)
    assert "#010101" not in text and "#020202" not in text


def test_hostile_label_stays_text(whole_run):
    _, text, _ = whole_run
    page = Page(text)
    assert len(page.all("script")) == 1
    assert HOSTILE in page.text


def test_page_shows_what_the_run_has(whole_run):
    _, text, _ = whole_run
    words = Page(text).text
    assert "8 frames of 64×64 pixels at 5 fps, 1.6 seconds" in words
    assert "has seen 5,056 clips" in words and "on CPU" in words
    assert "not what the method can reach" in words
    for number_shown in ("21.53", "12.1", "0.71", "1.99", "0.61"):
        assert number_shown in words
    assert words.count("held-out clips, one window each") == 2


def test_the_head_says_what_simple_codes_reach(tmp_path):
    write_run(tmp_path, num_samples=1)
    path = tmp_path / "eval" / "metrics.json"
    metrics = json.loads(path.read_text())
    simple = {"psnr_linear_planes_db": 23.8, "psnr_cosine_db": 24.85, "mel_error_cosine_db": 1.6}
    metrics["reconstruction"] |= simple
    about = {"values_per_stream": {"video": 3072, "audio": 3072}, "protocol": "fitted on training clips"}
    path.write_text(json.dumps(metrics | {"yardsticks": about}))
    write_report(small_config(tmp_path))
    words = Page((tmp_path / "report.html").read_text("utf-8")).text
    head = words[: words.index("Expect blurry")]
    pictures = "mean colour 12.10 dB, linear planes 23.80 dB, cosine transform 24.85 dB"
    assert f"MDSA reaches 21.53 dB PSNR in the picture ({pictures})" in head
    assert "6.20 dB log-mel error in the sound (cosine transform 1.60 dB)" in head
    assert "store as much as MDSA: 3,072 numbers a stream" in head
    assert "fitted on training clips" in words  # the card of the yardsticks, with its protocol
    path.write_text(json.dumps(metrics | {"yardsticks": {"absent": "they need a training split"}}))
    write_report(small_config(tmp_path))
    words = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "no cosine transform: they need a training split." in words


def test_samples_of_prompts_are_named_by_their_texts(tmp_path):
    write_run(tmp_path, num_samples=2)
    manifest = tmp_path / "samples" / "manifest.jsonl"
    first, second = map(json.loads, manifest.read_text().splitlines())
    texts = {"texts": {"caption": "a glass falls"}}
    rows = [first | texts | {"label": None}, second | texts | {"label": "sea"}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(small_config(tmp_path))
    words = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "sea, a glass falls" in words and words.count("a glass falls") == 2
    assert "without a label" not in words


def test_empty_run_names_the_commands(tmp_path):
    write_report(small_config(tmp_path))
    words = Page((tmp_path / "report.html").read_text("utf-8")).text
    for job in ("generate.py", "evaluate.py", "stage=mdsa", "stage=stdit"):
        assert job in words
    assert "Nothing has been trained" in words


def test_damage_is_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "samples" / "000000" / "000000001.mp4").write_bytes(b"not a video")
    (tmp_path / "samples" / "000000" / "000000002.mp4").unlink()
    with (tmp_path / "samples" / "manifest.jsonl").open("a") as file:
        file.write('{"index": 3, "pa\n')
        file.writelines(json.dumps({"index": n, "error": "no_audio"}) + "\n" for n in (4, 5))
    with (tmp_path / "mdsa" / "metrics.jsonl").open("a") as file:
        file.write('{"clips": 6000, "loss": NaN, "clips_per_second": 20.0}\n')
    (tmp_path / "mdsa" / "validation.jsonl").write_text(
        '{"clips": 6000, "psnr_db": NaN}\n{"psnr_db": 20.0}\n{"clips": 7000, "psnr_db": "high"}\n'
    )
    (tmp_path / "eval" / "reconstructions" / "001_real.mp4").unlink()
    (tmp_path / "stdit" / "checkpoints" / "latest").write_text("gone")
    write_report(small_config(tmp_path))
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert len(page.all("video")) == 1 + 3
    for words in (
        "Sample 1 cannot be shown",
        "Sample 2 cannot be shown (not_found)",
        "manifest.jsonl, line 4",
        "2 inputs could not be used (no_audio 2)",
        "loss is not a finite number in 1 report",
        "validation_psnr_db is not a finite number in 1 report",
        "a report without `clips` was left out",
        "001_real.mp4 cannot be shown",
        "names a checkpoint that is not there",
    ):
        assert words in page.text


@pytest.mark.parametrize(
    ("stdit", "distill", "is_older"),
    [
        ("a1" * 32, None, False),
        ("b2" * 32, None, True),
        ("b2" * 32, "a1" * 32, False),
        ("b2" * 32, "c3" * 32, True),
    ],
)
def test_clips_of_an_older_checkpoint_are_marked(tmp_path, stdit, distill, is_older):
    write_run(tmp_path, num_samples=1)  # by the checkpoint a1a1...
    for stage, digits in (("stdit", stdit), ("distill", distill)):
        folder = tmp_path / stage / "checkpoints" / "clips-000005056"
        if digits is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "checkpoint.json").write_text(json.dumps({"clips": 5056, "hash": digits}))
            (folder.parent / "latest").write_text("clips-000005056\n")
    write_report(small_config(tmp_path))
    words = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert ("which is not this run's newest" in words) == is_older


def test_report_is_reproducible(whole_run):
    run, text, _ = whole_run
    write_report(small_config(run))
    assert (run / "report.html").read_text("utf-8") == text


def test_metrics_of_a_restarted_run_count_once(tmp_path):
    (tmp_path / "metrics").mkdir()
    rows = [
        {"clips": 100, "loss": 3.0, "clips_per_second": 10.0},
        {"clips": 200, "loss": 2.0, "clips_per_second": 10.0},
    ]
    again = [
        {"clips": 200, "loss": 2.5, "clips_per_second": 20.0},
        {"clips": 300, "loss": 1.0, "clips_per_second": 20.0},
    ]
    for part, part_rows in enumerate((rows, again)):
        (tmp_path / "metrics" / f"part-{part:06d}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in part_rows)
        )
    run = read_curves(str(tmp_path))
    assert run.series["loss"] == ([100, 200, 300], [3.0, 2.5, 1.0])
    assert run.seconds == pytest.approx(10 + 5 + 5)


def test_mel_rows_match_the_filterbank():
    from proav.media.torchaudio import import_torchaudio

    filters_FM = import_torchaudio().functional.melscale_fbanks(
        4001, 0.0, 8000.0, 64, 16000, norm="slaney", mel_scale="slaney"
    )
    for band in (3, 20, 40, 60):
        assert _mel_row(float(filters_FM[:, band].argmax()) * 2, 64, 0.0, 8000.0) == pytest.approx(
            band, abs=0.05
        )


def test_values_for_people():
    assert [number(value) for value in (3, 12345, 0.123456, 12345.67, float("nan"))] == [
        "3",
        "12,345",
        "0.1235",
        "12,345.7",
        "nan",
    ]
    assert metric_name("psnr_mean_colour_db") == ("PSNR mean colour", "dB")
    assert element("a", "<b>", href='"', data_left=None) == '<a href="&quot;">&lt;b&gt;</a>'


def test_long_curves_stay_small():
    clips = np.arange(1, 50_001)
    assert len(curve(clips, 1 / clips, description="a long run")) < 120_000


def test_a_browser_plays_every_video(whole_run):
    run, _, _ = whole_run
    states = "[...document.querySelectorAll('video')].map(v => v.error ? 'error' : v.readyState)"
    with open_browser(chromium_or_skip()) as tab:
        tab.open((run / "report.html").as_uri())
        tab.wait(f"{states}.every(state => state === 'error' || state >= 2)", seconds=60)
        found = tab.evaluate(states)
    assert found and "error" not in found, found


def test_the_axis_of_a_long_curve_holds_its_band():
    """All stretches have the same mean. Their greatest and least values choose the axis."""
    values = np.tile([1.0, 100.0], 400)

    def ticks(**options):
        drawn = str(curve(np.arange(800), values, description="in turns", **options))
        labels = re.findall(r"<text[^>]*text-anchor: end[^>]*>([^<]*)<", drawn)
        return [float(label) for label in labels]

    assert {1, 10, 100} <= set(ticks()) and 100 in ticks(from_zero=True)
