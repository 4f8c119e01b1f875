"""Offline generation: many samples of one checkpoint to mp4 files, with Ray Data.

Not here: how a batch is sampled (`pipeline.py`). A sample has an index for a name, and is a function of
(checkpoint, seed, index, settings). So a run that was stopped makes only the missing samples when it is
started again, and a finished run changes nothing.
"""

import json
import time

from proav import storage
from proav.config import Config
from proav.diffusion import make_process
from proav.errors import TOLD, UserError, raise_from_text, to_text
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.runs.checkpoint import load_checkpoint
from proav.runs.layout import RunFolder
from proav.runs.progress import Progress
from proav.text import find_label

MANIFEST_SECONDS = 10.0
"""While samples are made, the whole manifest is written this often.

If a run is killed, the samples that its manifest lacks are made again.
"""


def sample_path(folder: str, index: int) -> str:
    """<folder>/<index // 1000:06d>/<index:09d>.mp4"""
    return storage.join(folder, f"{index // 1000:06d}", f"{index:09d}.mp4")


def generate(config: Config) -> list[dict]:
    """Makes samples 0 .. generate.num_samples - 1 and returns the manifest's rows.

    The checkpoint is generate.checkpoint, or else the run's newest ST-DiT checkpoint. Samples with these
    indices but of other settings or another checkpoint are replaced, and a line is printed that says so.
    Samples with higher indices stay, with their rows. Raises UserError for a task that needs a given stream,
    and for an unknown label.
    """
    import ray

    from proav.on_ray.resources import device_of, wants_gpu

    if config.generate.task != "joint":
        raise UserError(
            f"generate.task={config.generate.task}: generate.py makes joint samples; a2v and v2a take a "
            "given file: SoundingVideoPipeline(task=...)"
        )
    run = RunFolder(config)
    folder = run.samples
    checkpoint = load_checkpoint(config.generate.checkpoint or run.stdit.checkpoints, kind="stdit")
    process = make_process(checkpoint.config)
    settings = SamplingSettings.from_config(config).filled(process)
    settings.num_calls(process.objective)  # or says why not
    rows = wanted_rows(config, checkpoint)
    found = {row["index"]: row for row in read_samples(folder)}
    done = {
        row["index"]: found[row["index"]]
        for row in rows
        if _same(found.get(row["index"]), row) and storage.exists(storage.join(folder, row["path"]))
    }
    missing = [row for row in rows if row["index"] not in done]
    if not missing:
        print(f"generate: done already, {len(rows):,} samples in {folder}")
        return rows
    others = {index: row for index, row in found.items() if index >= len(rows)}
    replaced = sum(row["index"] in found for row in missing)
    if replaced:
        print(f"generate: {replaced:,} samples of another checkpoint or other settings are replaced")
    size = config.generate.batch_size
    tasks = [{"rows": json.dumps(missing[first : first + size])} for first in range(0, len(missing), size)]
    ray.data.DataContext.get_current().enable_progress_bars = False
    use_gpu = wants_gpu(config.generate.use_gpu)
    made = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        BatchSampler,
        fn_constructor_kwargs={
            "checkpoint_path": checkpoint.path,
            "folder": folder,
            "settings": settings,
            "device": device_of(use_gpu),
        },
        compute=ray.data.ActorPoolStrategy(size=min(config.generate.num_workers, len(tasks))),
        num_cpus=1,
        num_gpus=int(use_gpu),
    )
    write_samples(folder, others | done)  # without the rows of samples that are about to be replaced
    progress, written = Progress("generate", len(rows), "samples", start=len(done)), time.monotonic()
    try:
        for result in made.iter_rows():
            if result["error"]:
                raise_from_text(result["error"])
            done.update({row["index"]: row for row in json.loads(result["rows"])})
            progress.update(len(done))
            if time.monotonic() - written > MANIFEST_SECONDS:
                write_samples(folder, others | done)
                written = time.monotonic()
    finally:
        write_samples(folder, others | done)
        progress.close()
    print(f"generate: {len(rows):,} samples in {folder}")
    return [done[row["index"]] for row in rows]


def wanted_rows(config: Config, checkpoint) -> list[dict]:
    """The manifest's rows that this configuration asks for, in index order.

    If no label is named, the checkpoint's labels take turns.
    """
    settings = config.generate
    sampling = SamplingSettings.from_config(config).filled(make_process(checkpoint.config))
    place = None if settings.label is None else find_label(settings.label, checkpoint.labels)
    if settings.label is not None and place is None:
        raise UserError(
            f"generate.label={settings.label!r} is unknown to the checkpoint; "
            f"expected one of: {', '.join(checkpoint.labels) or 'none'}"
        )
    labels = [checkpoint.labels[place]] if place is not None else list(checkpoint.labels) or [None]
    return [
        {
            "index": index,
            "path": sample_path("", index).lstrip("/"),
            "seed": config.seed,
            "label": labels[index % len(labels)],
            **sampling.to_dict(),
            "checkpoint": checkpoint.hash,
            "clips_trained": checkpoint.clips,
        }
        for index in range(settings.num_samples)
    ]


def read_samples(folder: str) -> list[dict]:
    """The rows of samples/manifest.jsonl; an empty list if there is no such file."""
    path = storage.join(folder, "manifest.jsonl")
    return [json.loads(line) for line in storage.read_text(path).splitlines()] if storage.exists(path) else []


def write_samples(folder: str, rows: dict[int, dict]) -> None:
    storage.write_text(
        storage.join(folder, "manifest.jsonl"),
        "".join(json.dumps(rows[index]) + "\n" for index in sorted(rows)),
    )


class BatchSampler:
    """From a batch of manifest rows to mp4 files: a Ray Data actor, or called directly in a test.

    checkpoint_path: of an ST-DiT checkpoint.
    folder: where the mp4 files go.
    settings: how samples are made, the same for all rows.
    device: "cpu" or a GPU's name.
    """

    def __init__(
        self, checkpoint_path: str, folder: str, settings: SamplingSettings, device: str = "cpu"
    ) -> None:
        self.pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint_path, device=device)
        self.folder, self.settings = folder, settings

    def __call__(self, task: dict) -> dict:
        """The rows that are done. `error` tells a user's mistake, which Ray would wrap beyond recognition."""
        rows = json.loads(task["rows"])
        requests = [
            SampleRequest(row["seed"], row["index"], row["label"], settings=self.settings) for row in rows
        ]
        try:
            for row, clip in zip(rows, self.pipeline.sample(requests), strict=True):
                clip.save(storage.join(self.folder, row["path"]))
        except TOLD as error:
            return {"rows": "[]", "error": to_text(error)}
        return {"rows": task["rows"], "error": ""}


def _same(found: dict | None, wanted: dict) -> bool:
    """Whether a sample is the wanted one. Settings that rows of earlier versions lack had the defaults."""
    if found is None:
        return False
    found = SamplingSettings().to_dict() | found
    return all(found.get(key) == value for key, value in wanted.items())
