"""Measures the moving-average weights on held-out sources during training, by a Ray task beside the trainer.

The newest checkpoint is measured if it is due, by a task that waits for a free CPU (or GPU) and does not
delay training; those that a newer one has overtaken are not. If a measurement fails, or its checkpoint was
removed meanwhile, it is left out, and a line says so. Reconstructions, loss and generated clips are measured
in `proav/evaluate`.
"""

import json
import threading
from types import TracebackType

import ray

from proav import storage
from proav.config import Config
from proav.errors import CheckpointError
from proav.evaluate.flow_map_error import evaluate_flow_map
from proav.evaluate.job import evaluate
from proav.evaluate.losses import evaluate_stdit
from proav.evaluate.reconstruction import evaluate_reconstruction
from proav.generation.batch import generate
from proav.on_ray.resources import device_of, wants_gpu
from proav.runs.checkpoint import list_checkpoints
from proav.runs.layout import RunFolder
from proav.runs.stages import STAGES

MEASURES = {"mdsa": evaluate_reconstruction, "stdit": evaluate_stdit, "distill": evaluate_flow_map}
POLL_SECONDS = 2.0
FILE = "validation.jsonl"


class Validation:
    """A context around the training of one stage.

    <stage>/validation.jsonl gets a line {"clips", ...} for each measured checkpoint. Lines of a training that
    went further than the one that is resumed are removed at the start. The end of the block waits until the
    last checkpoint is measured; after an error it waits only for a measurement that runs.
    """

    def __init__(self, config: Config, stage: str) -> None:
        self.config, self.stage = config, stage
        self.folder = RunFolder(config).stage(stage).path
        self.every = getattr(config, stage).train.validate_every_clips
        self._checkpoints = storage.join(self.folder, "checkpoints")
        self._done = self._still_true()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"validation of {stage}", daemon=True)

    def __enter__(self) -> "Validation":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        if error is None:
            self._try_newest(last=True)

    def _still_true(self) -> set[int]:
        """Clips of the lines that belong to the training that is resumed; the others are removed."""
        newest = max((clips for clips, _ in list_checkpoints(self._checkpoints)), default=0)
        rows = read_validation(self.folder)
        if kept := [row for row in rows if row["clips"] <= newest]:
            if len(kept) < len(rows):
                self._write(kept)
        elif rows:
            storage.delete_file(storage.join(self.folder, FILE))
        return {row["clips"] for row in kept}

    def _watch(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            self._try_newest()

    def _try_newest(self, *, last: bool = False) -> None:
        """As `_measure_newest`; a measurement that fails is reported, and does not end the training."""
        try:
            self._measure_newest(last=last)
        except Exception as error:
            why = " ".join(str(error).split())[:500]
            print(f"{self.stage}: a measurement beside training failed and is left out ({why})", flush=True)

    def _measure_newest(self, *, last: bool = False) -> None:
        """Measures the newest checkpoint if it is due.

        It is due `validate_every_clips` clips after the last measured one. last: measure it in any case.
        """
        found = list_checkpoints(self._checkpoints)
        if (
            not found
            or found[0][0] in self._done
            or not (last or found[0][0] >= max(self._done, default=0) + self.every)
        ):
            return
        clips, path = found[0]
        self._done.add(clips)  # also if it fails: it would fail again
        use_gpu = wants_gpu(self.config.evaluate.use_gpu)
        measure = MEASURES[self.stage]
        task = ray.remote(num_cpus=1, num_gpus=int(use_gpu), scheduling_strategy="DEFAULT")(measure)
        try:
            metrics = ray.get(task.remote(self.config, path, device=device_of(use_gpu)))
            if self.stage != "mdsa" and self.config.evaluate.samples_beside_training:
                metrics |= evaluate_samples(
                    STAGES[self.stage].described(self.config),
                    path,
                    storage.join(self.folder, "validation", f"{clips:012d}"),
                )
        except (ray.exceptions.RayError, CheckpointError):
            if storage.exists(path):
                raise
            print(
                f"{self.stage}: the checkpoint at {clips:,} clips was gone before it could be measured; "
                "train.keep_checkpoints keeps more"
            )
            return
        row = {
            "clips": clips,
            **{name: value for name, value in metrics.items() if isinstance(value, int | float)},
        }
        rows = sorted(
            [*(row for row in read_validation(self.folder) if row["clips"] != clips), row],
            key=lambda each: each["clips"],
        )
        self._write(rows)
        print(
            f"{self.stage}: {self.config.evaluate.split} at {clips:,} clips: "
            + ", ".join(f"{name} {row[name]:.4g}" for name in STAGES[self.stage].numbers),
            flush=True,
        )

    def _write(self, rows: list[dict]) -> None:
        storage.write_text(storage.join(self.folder, FILE), "".join(json.dumps(each) + "\n" for each in rows))


def evaluate_samples(config: Config, checkpoint: str, folder: str) -> dict[str, float]:
    """Makes evaluate.samples_beside_training clips and measures them by the protocol. Ray must be running.

    They are measured against the training split. folder/eval/metrics.json has the whole table.

    checkpoint: of ST-DiT.
    folder: everything is written below it.
    Returns {"generated_<metric>": value} of the metrics that could be measured.
    """
    own = config.model_copy(
        update={
            "run_dir": folder,
            "data": config.data.model_copy(update={"prepared": config.data_folder}),
            "generate": config.generate.model_copy(
                update={
                    "num_samples": config.evaluate.samples_beside_training,
                    "listing": None,
                    "seconds": None,
                    "num_writers": 0,
                    "checkpoint": checkpoint,
                }
            ),
            "evaluate": config.evaluate.model_copy(
                update={
                    "real": config.data_folder,
                    "fake": storage.join(folder, "samples"),
                    "num_workers": 1,
                    "compare_with": None,
                }
            ),
        }
    )
    generate(own)
    (table,) = evaluate(own)["tables"]
    return {f"generated_{row['metric']}": row["value"] for row in table["rows"] if row["value"] is not None}


def read_validation(stage_folder: str) -> list[dict]:
    """The lines of validation.jsonl, in order of clips; [] if there is no file."""
    path = storage.join(stage_folder, FILE)
    return [json.loads(line) for line in storage.read_text(path).splitlines()] if storage.exists(path) else []
