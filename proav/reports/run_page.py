"""report.html of a run: samples, spectrograms, reconstructions, curves, metrics; one file that opens offline.

It reads only what the run left on disk, local or remote. It measures nothing itself (`proav/evaluate` does).
The page about the data set is in `data_page.py`. Reports are ours, not the paper's.
"""

import json
from collections import Counter

import pyarrow as pa

from proav import storage
from proav.config import Config
from proav.config.reading import config_to_yaml
from proav.errors import MediaError
from proav.geometry import ClipGeometry
from proav.reports.data_page import in_split, num_sources, segment_seconds, write_data_report
from proav.reports.kit.figures import curve
from proav.reports.kit.page import (
    ACRONYMS,
    Markup,
    build_page,
    counted,
    element,
    facts,
    is_number,
    metric_name,
    metrics_card,
    number,
    todo,
    warning,
)
from proav.reports.kit.tables import beside, number_table, values_text
from proav.reports.run_files import (
    ClipPlayers,
    Metrics,
    read_checkpoint_card,
    read_curves,
    read_json,
    read_json_lines,
    read_segments,
)
from proav.runs.layout import RunFolder
from proav.runs.progress import duration
from proav.runs.stages import STAGES

__all__ = ["write_data_report", "write_report"]

MAX_SAMPLES = 24
"""Most clips that are shown: a page with this many videos of 256x256 pixels stays near 10 MB."""
MAX_RECONSTRUCTIONS = 12
NOT_CURVES = {"clips", "step", "seconds", "epoch", "loss", "clips_per_second"}


def write_report(config: Config) -> str:
    """Writes <run_dir>/report.html from what the run has left so far, and returns its path.

    For each part of the run that does not exist yet, the page has one line with its command. The page names
    damaged files.
    """
    run = config.run_folder
    metrics = {stage: read_curves(storage.join(run, stage)) for stage in STAGES}
    cards, problems = {}, []
    for stage in STAGES:
        cards[stage], problem = read_checkpoint_card(storage.join(run, stage))
        problems += [problem] if problem else []
    segments, segment_problems = read_segments(config.data_folder)
    samples, sample_problems = read_json_lines(storage.join(run, "samples", "manifest.jsonl"))
    samples, refused = (
        [row for row in samples if "error" not in row],
        [row for row in samples if "error" in row],
    )
    sample_problems += [_refused_inputs(refused)] if refused else []
    players = ClipPlayers(config)
    header = [
        *_header(config, metrics, cards, segments, samples),
        [warning(text) for text in problems + segment_problems],
    ]
    sections = [
        ("samples", "Samples", _samples(config, players, samples, sample_problems, cards)),
        ("reconstructions", "Reconstructions", _reconstructions(config, players)),
        ("curves", "Training", _curves(config, metrics)),
        ("metrics", "Metrics", _metrics(config)),
        ("configuration", "Configuration", _configuration(config)),
    ]
    path = storage.join(run, "report.html")
    storage.write_text(path, build_page(f"{config.name}: report", header, sections))
    return path


def command(config: Config, job: str, *words: str) -> str:
    """What to type to run `job` for this run."""
    return " ".join([f"python ray_jobs/{job}.py --config {RunFolder(config).config_file}", *words])


def clip_words(config: Config) -> str:
    """A clip in words: `8 frames of 64×64 pixels at 5 fps, 1.6 seconds, with sound at 16 kHz`."""
    clip = ClipGeometry.from_config(config)
    picture = f"{clip.num_frames} frames of {clip.width}×{clip.height} pixels at {clip.fps} fps"
    return f"{picture}, {clip.seconds:g} seconds, with sound at {clip.sample_rate / 1000:g} kHz"


def _header(
    config: Config, metrics: dict[str, Metrics], cards: dict, segments: pa.Table, samples: list[dict]
) -> list[Markup]:
    """Title, statement and facts at the top of the page.

    metrics: {stage: its reports}.
    cards: {stage: checkpoint.json of its newest checkpoint, or None}.
    segments: the index of the data.
    samples: the lines of samples/manifest.jsonl that name a file.
    """
    seeds = sorted({sample["seed"] for sample in samples if "seed" in sample}, key=str)
    settings = dict.fromkeys(
        f"{sample.get('steps', '?')} steps, guidance {_guidance(sample)}" for sample in samples
    )
    versions = dict.fromkeys(
        f"{name} {version}"
        for card in cards.values()
        if card
        for name, version in dict(card.get("versions") or {}).items()
    )
    checkpoints = [
        (
            f"{ACRONYMS[stage]} checkpoint",
            [
                element("code", str(card.get("hash", "without a hash"))[:16]),
                element("div", f"after {counted(card.get('clips', 0), 'clip')}", class_="note"),
            ],
        )
        for stage, card in cards.items()
        if card
    ]
    return [
        element("p", "proav run", class_="eyebrow"),
        element("h1", config.name),
        element("p", f"A model of clips with picture and sound: {clip_words(config)}.", class_="lead"),
        element(
            "div",
            [element("p", text) for text in _statement(config, metrics, cards, segments)],
            class_="statement",
        ),
        facts(
            [
                *checkpoints,
                ("Seed of the run", number(config.seed)),
                (
                    "Seeds of the samples",
                    f"{', '.join(map(str, seeds[:6]))}{' …' if len(seeds) > 6 else ''}" if seeds else None,
                ),
                ("Sampling", "; ".join(settings) or None),
                ("Versions", ", ".join(versions) or None),
            ]
        ),
    ]


def _statement(config: Config, metrics: dict[str, Metrics], cards: dict, segments: pa.Table) -> list[str]:
    """What this run can and cannot show, from its numbers; arguments as in `_header`.

    The defaults of proav/config are the paper's scale.
    """
    paper = Config()
    full = {name: stage.settings(paper).num_clips for name, stage in STAGES.items() if not stage.optional}
    seen = {stage: max(metrics[stage].clips, int((cards[stage] or {}).get("clips", 0))) for stage in STAGES}
    if not any(seen.values()):
        return ["Nothing has been trained in this run yet: this page fills as its jobs finish."]
    train = in_split(segments, "train")
    sources = num_sources(train)
    parts = [
        f"the {STAGES[stage].role} ({STAGES[stage].model}) has seen {counted(seen[stage], 'clip')}"
        for stage in STAGES
        if seen[stage]
    ]
    *others, last = parts
    text = f"{', '.join(others)} and {last}" if others else last
    text += (
        f", drawn from {counted(sources, 'source')} "
        f"({duration(float(segment_seconds(train).sum()))} of video)"
        if sources
        else ""
    )
    spent = sum(metrics[stage].seconds for stage in STAGES)
    devices = list(
        dict.fromkeys(
            "CPU" if device == "cpu" else device for stage in STAGES for device in metrics[stage].devices
        )
    )
    text += f", in {duration(spent)} of training" if spent else ""
    text += f" on {', '.join(devices)}" if devices else ""
    measured = _measured_sentence(config)
    share = min(seen[stage] / full[stage] for stage in full)
    pixels = config.clip.width * config.clip.height / (paper.clip.width * paper.clip.height)
    scale = [
        f"Full-size training shows the two models {number(full['mdsa'])} and {number(full['stdit'])} clips "
        f"of {paper.clip.width}×{paper.clip.height} pixels; "
        f"this run has had {_percent(seen['mdsa'] / full['mdsa'])} and "
        f"{_percent(seen['stdit'] / full['stdit'])} of that"
        + (f", at {_percent(pixels)} of the pixels." if pixels < 1 else ".")
    ]
    if share < 0.1:
        verdict = (
            "Expect blurry pictures and rough sound. This shows that every step from file to sample works, "
            "not what the method can reach."
        )
    elif share < 1 or pixels < 1:
        verdict = (
            "This is a part of full-size training: the clips show what the models have learned so far, "
            "not what they can reach."
        )
    else:
        verdict = (
            "This is full-size training; compare its metrics with those of others only if the protocols "
            "are the same."
        )
    if 0 < sources < 100:
        verdict += (
            f" With {counted(sources, 'source')} a generator can also repeat what it has seen: "
            "a sharp sample is not yet a new one."
        )
    return [f"{text[0].upper()}{text[1:]}.", *scale, *measured, verdict]


def _measured_sentence(config: Config) -> list[str]:
    """One sentence with MDSA's numbers beside those of simple codes; [] if they are not measured yet."""
    values, _ = read_json(RunFolder(config).metrics)
    reconstruction = (values or {}).get("reconstruction")
    if not isinstance(reconstruction, dict):
        return []
    psnr, mel_error = reconstruction.get("psnr_db"), reconstruction.get("mel_error_db")
    if not is_number(psnr) or not is_number(mel_error):
        return []
    yardsticks = values.get("yardsticks", {})
    stored = yardsticks.get("values_per_stream")
    rest = ""
    if stored:
        rest = f" Linear planes and cosine transform store as much as MDSA: {values_text(stored)}."
    if "absent" in yardsticks:
        rest = f" There are no linear planes and no cosine transform: {yardsticks['absent']}."
    clips = {"train": "training clips", "validation": "clips of unseen sources"}[config.evaluate.split]
    return [
        f"On {clips} MDSA reaches {psnr:.2f} dB PSNR in the picture ({beside(reconstruction, 'picture')}) "
        f"and {mel_error:.2f} dB log-mel error in the sound ({beside(reconstruction, 'sound')}).{rest}"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _samples(
    config: Config, players: ClipPlayers, samples: list[dict], problems: list[str], cards: dict
) -> list[Markup]:
    """The section of generated clips.

    players: makes the players.
    samples, problems: the lines of samples/manifest.jsonl, and what was wrong with others.
    cards: checkpoint.json of each stage's newest checkpoint, or None.
    """
    if not samples:
        return [
            todo("No clips have been generated yet:", command(config, "generate")),
            *map(warning, problems),
        ]
    samples = sorted(samples, key=lambda sample: sample.get("index", 0))
    shown = samples[:MAX_SAMPLES]
    count = (
        f"All {counted(len(samples), 'clip')}"
        if len(samples) == len(shown)
        else f"The first {len(shown)} of {counted(len(samples), 'clip')}"
    )
    how = (
        "Under each video are its frames and its sound as a mel spectrogram, over one time axis; "
        "click there to go to that time."
    )
    notes = [element("p", f"{count}, in the order of their index: none was picked. {how}", class_="note")]
    hashes = {str(sample.get("checkpoint")) for sample in samples}
    makers = [card for card in (cards["stdit"], cards["distill"]) if card and card.get("hash")]
    if len(hashes) > 1:
        notes.append(
            warning(
                f"These clips were made by {len(hashes)} different checkpoints: {', '.join(sorted(hashes))}."
            )
        )
    elif makers and not any(_same_hash(str(card["hash"]), *hashes) for card in makers):
        notes.append(
            warning(
                f"These clips were made by the checkpoint {hashes.pop()[:16]}, "
                "which is not this run's newest."
            )
        )
    return [
        *notes,
        *map(warning, problems),
        element("div", [_sample(config, players, sample) for sample in shown], class_="grid"),
    ]


def _refused_inputs(rows: list[dict]) -> str:
    """How many inputs could not be used, and why. rows: lines of samples/manifest.jsonl with an `error`."""
    reasons = Counter(str(row["error"]) for row in rows)
    said = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"{counted(len(rows), 'input')} could not be used ({said}); samples/manifest.jsonl says why."


def _same_hash(newest: str, made_by: str) -> bool:
    """Whether two hashes agree; a manifest may hold only the first digits of a hash."""
    return newest.startswith(made_by) or made_by.startswith(newest)


def _guidance(sample: dict) -> str:
    """Guidance of a line of the manifest. It names the sound's only if it differs."""
    both, audio = sample.get("guidance_scale", 1), sample.get("audio_guidance_scale")
    return f"{both:g}" if audio is None else f"{both:g}, of the sound {audio:g}"


def _title(sample: dict) -> str:
    """The label and the texts of a line of the manifest."""
    said = [sample["label"]] if sample.get("label") is not None else []
    return ", ".join(map(str, [*said, *sample.get("texts", {}).values()])) or "without a label"


def _sample(config: Config, players: ClipPlayers, sample: dict) -> Markup:
    index, title = sample.get("index", "?"), _title(sample)
    tags = [f"sample {index}", f"seed {sample.get('seed', '?')}"]
    tags += [str(sample["task"])] if sample.get("task", "joint") != "joint" else []
    tags += [f"{sample['steps']} steps"] if "steps" in sample else []
    tags += [f"guidance {_guidance(sample)}"] if _guidance(sample) != "1" else []
    try:
        content = players.from_file(
            _sample_path(config, sample), description=f"Generated clip {index}, {title}"
        )
    except MediaError as error:
        content = element(
            "div", warning(f"Sample {index} cannot be shown ({error.reason}): {error}"), class_="text"
        )
    text = element(
        "figcaption",
        element("h3", title),
        element("ul", [element("li", tag) for tag in tags], class_="tags"),
        class_="text",
    )
    return element("figure", content, text, class_="card player")


def _sample_path(config: Config, sample: dict) -> str:
    """The absolute path of a manifest's line; it may be relative to the samples' folder or to the run's."""
    path = str(sample.get("path", ""))
    folder = RunFolder(config).samples
    if not path:
        raise MediaError("not_found", "its line in samples/manifest.jsonl names no path")
    if storage.is_remote(path) or path.startswith("/"):
        return path
    beside, below_run = storage.join(folder, path), storage.join(config.run_folder, path)
    return below_run if not storage.exists(beside) and storage.exists(below_run) else beside


def _reconstructions(config: Config, players: ClipPlayers) -> list[Markup]:
    folder = RunFolder(config).reconstructions
    files = {path.rsplit("/", 1)[-1]: path for path in storage.list_files(folder)}
    names = sorted(
        {name.rsplit("_", 1)[0] for name in files if name.endswith(("_real.mp4", "_reconstructed.mp4"))}
    )
    if not names:
        return [todo("Nothing has been reconstructed yet:", command(config, "evaluate"))]
    pairs = []
    for name in names[:MAX_RECONSTRUCTIONS]:
        sides = []
        for kind, title in (("real", "Real"), ("reconstructed", "Reconstructed")):
            path = files.get(f"{name}_{kind}.mp4", storage.join(folder, f"{name}_{kind}.mp4"))
            try:
                content = players.from_file(path, description=f"{title} clip {name}", title=f"{title} sound")
            except MediaError as error:
                content = element(
                    "div",
                    warning(f"{name}_{kind}.mp4 cannot be shown ({error.reason}): {error}"),
                    class_="text",
                )
            sides.append(element("figure", element("figcaption", title), content, class_="player"))
        buttons = [
            element("button", f"Play both, hear the {heard}", type="button", aria_pressed="false")
            for heard in ("real", "reconstructed")
        ]
        text = [element("h3", f"Clip {name}"), element("div", buttons)]
        pairs.append(
            element(
                "div",
                text,
                element("div", sides, class_="sides"),
                class_="card pair",
                role="group",
                aria_label=f"Clip {name}",
            )
        )
    split = {
        "train": "clips the autoencoder was trained on",
        "validation": "clips of sources the autoencoder never saw",
    }[config.evaluate.split]
    limits = f" The first {MAX_RECONSTRUCTIONS} of {len(names)}." if len(names) > MAX_RECONSTRUCTIONS else ""
    note = (
        f"Real {split}, beside the same clips after encoding and decoding: "
        "the best that the generator could reach with this autoencoder."
    )
    return [element("p", note, limits, class_="note"), element("div", pairs, class_="pairs")]


def _curves(config: Config, metrics: dict[str, Metrics]) -> list[Markup]:
    content = []
    for stage in STAGES:
        name, run = ACRONYMS[stage], metrics[stage]
        if STAGES[stage].optional and not (run.series or run.problems):
            continue
        content.append(element("h3", name, style="margin-top: 1.5rem"))
        if not run.series:
            content += [
                todo(f"{name} has not been trained yet:", command(config, "train", f"stage={stage}")),
                *map(warning, run.problems),
            ]
            continue
        spent = f" in {duration(run.seconds)}" if run.seconds else ""
        content.append(
            element(
                "p",
                f"{counted(run.clips, 'clip')} seen{spent}, {counted(run.num_reports, 'report')}.",
                class_="note",
            )
        )
        content += map(warning, run.problems)
        first = [key for key in ("loss", "clips_per_second") if key in run.series]
        rest = [
            key
            for key, (_, values) in run.series.items()
            if key not in NOT_CURVES and min(values) < max(values)
        ]
        content.append(element("div", [_curve_card(name, key, run) for key in first], class_="grid"))
        if rest:
            names = ", ".join(" ".join(metric_name(key)).strip() for key in rest)
            more = element("div", [_curve_card(name, key, run) for key in rest], class_="grid")
            content.append(
                element("details", element("summary", f"{counted(len(rest), 'more curve')}: {names}"), more)
            )
    return content


def _curve_card(stage: str, key: str, run: Metrics) -> Markup:
    clips, values = run.series[key]
    throughput = key == "clips_per_second"
    name = "Throughput, clips per second" if throughput else " ".join(metric_name(key)).strip()
    ends = [f"{number(values[end])} at {counted(int(clips[end]), 'clip')}" for end in (0, -1)]
    description = f"{stage}, {name} over clips trained: from {ends[0]} to {ends[1]}."
    caption = element("figcaption", element("strong", name), f", last {number(values[-1])}")
    drawing = curve(
        clips, values, description=description, series=2 if throughput else 1, from_zero=throughput
    )
    return element("figure", caption, drawing, class_="card figure")


def _metrics(config: Config) -> list[Markup]:
    values, problem = read_json(RunFolder(config).metrics)
    if problem:
        return [warning(problem)]
    if values is None:
        return [todo("Nothing has been measured yet:", command(config, "evaluate"))]
    tables, protocol = values.pop("tables", []), values.pop("protocol", None)
    note = element(
        "p",
        "Every number has its protocol; numbers of other protocols are not comparable.",
        class_="note",
    )
    groups = {key: value for key, value in values.items() if isinstance(value, dict)}
    single = {key: value for key, value in values.items() if key not in groups}
    cards = [metrics_card(metric_name(key)[0], value) for key, value in groups.items()]
    cards += [metrics_card("Of the evaluation", single)] if single else []
    content = [note, element("div", list(map(number_table, tables)), cards, class_="grid")]
    if isinstance(protocol, dict):
        text = element("summary", f"The protocol, {protocol.get('hash', 'without a hash')}")
        content.append(element("details", text, element("pre", json.dumps(protocol, indent=1), tabindex="0")))
    return content


def _configuration(config: Config) -> list[Markup]:
    return [
        element(
            "details",
            element("summary", "Every setting of this run, resolved"),
            element("pre", config_to_yaml(config), tabindex="0"),
        )
    ]
