"""Batch generation on Ray Data: a plan's batches go through `making.Maker`, in one to three stages.

With GPUs there are up to three stages. Tasks read what is given, actors with GPUs denoise, and other actors
make the sounds and write the files. So no GPU waits for a decoder or an encoder. Without GPUs all steps need
the same CPUs, so each actor does all of them, unless generate.num_writers is set.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from proav import storage
from proav.config import Config
from proav.data.store.parquet import only_writer
from proav.diffusion import make_process
from proav.errors import UserError, raise_from_text
from proav.generation.batch.making import Maker, Recipe, errors_of, recipe_of
from proav.generation.batch.manifest import merge_parts, sample_path
from proav.generation.batch.plan import (
    check_clips,
    make_plan,
    shared_values,
    unpack,
    unset_values,
    wanted_rows,
)
from proav.generation.given_files import streams_read
from proav.generation.sampling_settings import SamplingSettings
from proav.runs.checkpoint import load_checkpoint
from proav.runs.layout import RunFolder
from proav.runs.progress import Progress
from proav.vectors import Encoders

MOST_BLOCKS = 2048
"""Most blocks that Ray Data is given. A longer plan has several batches in a block, made one by one."""
DENOISERS_PER_READER = 4
"""Denoising actors for each reading task: decoding a file takes far less time than denoising its sample."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended. num_samples: those with a file. errors: inputs that could not be used, by reason."""

    folder: str
    num_samples: int
    errors: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        said = f"{self.num_samples:,} samples in {self.folder}"
        if not self.errors:
            return said
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.errors.most_common())
        return (
            f"{said}; REJECTED: the inputs of {self.errors.total():,} more ({reasons}); see `error` in "
            f"{storage.join(self.folder, 'manifest.jsonl')}"
        )


def generate(config: Config) -> Outcome:
    """Makes the samples that `generate.*` asks for, with files and rows of the manifest; Ray must be running.

    The checkpoint is generate.checkpoint, or else the run's newest one of generate.stage. Samples of the same
    indices are made anew if they have other settings or are of another checkpoint, or if their file is
    missing; a printed line says so. Samples with higher indices stay, with their rows. Inputs that cannot be
    used become rows with `error`.

    Raises UserError for a mistake in the settings or in the listing, if a file cannot be written, and if
    another job is at work in the folder.
    """
    run = RunFolder(config)
    folder = run.samples
    checkpoint = load_checkpoint(_checkpoint_path(config, run), kind="stdit")
    if config.generate.checkpoint is None:
        check_clips(config, checkpoint.config)
    process = make_process(checkpoint.config)
    SamplingSettings.from_config(config).filled(process).num_calls(process.objective)  # or says why not
    shapes = checkpoint.config.stdit.vector_shapes
    Encoders(config.generate.encoders, shapes, setting="generate.encoders")  # or says why not
    shared = shared_values(config, checkpoint)
    wanted = wanted_rows(config, checkpoint)
    storage.make_folder(folder)
    with only_writer(folder):
        defaults = unset_values(process)
        plan = make_plan(folder, wanted, shared, config.generate.batch_size, defaults=defaults)
        errors = plan.errors
        if not plan.batches:
            outcome = Outcome(folder, plan.num_done - errors.total(), errors)
            print(f"generate: done already, {outcome}")
            return outcome
        if plan.num_replaced:
            said = f"{plan.num_replaced:,} samples of another checkpoint or other settings"
            print(f"generate: {said}, or whose file is missing, are made anew")
        recipe = recipe_of(config, checkpoint.config, checkpoint.path, folder, shared)
        progress = Progress("generate", plan.num_wanted, "samples", start=plan.num_done)
        places = {folder}
        try:
            with contextlib.closing(_made(config, recipe, plan.batches)) as made:
                for rows in made:
                    errors = errors + errors_of(rows)
                    places.update(sample_path(folder, row["index"]).rsplit("/", 1)[0] for row in rows)
                    progress.update(progress.done + len(rows))
        finally:
            merge_parts(folder)
            progress.close()
        for place in places:  # a killed job's half-written files are beside those that were now made instead
            storage.remove_leftovers(place)
    if progress.done != plan.num_wanted:  # Ray Data has lost rows without an error before
        raise RuntimeError(
            f"Ray Data returned {progress.done:,} of {plan.num_wanted:,} samples; run the same command again"
        )
    outcome = Outcome(folder, plan.num_wanted - errors.total(), errors)
    print(f"generate: {outcome}")
    return outcome


def _checkpoint_path(config: Config, run: RunFolder) -> str:
    """The checkpoint that makes the clips. Raises UserError if it should be a flow map, and there is none."""
    if config.generate.checkpoint is not None:
        return config.generate.checkpoint
    folder = run.stage(config.generate.stage).checkpoints
    if config.generate.stage == "distill" and not storage.exists(folder):
        raise UserError(
            f"generate.stage=distill: there is no flow map in {folder}; make one with: "
            "python ray_jobs/train.py stage=distill, or write generate.stage=stdit"
        )
    return folder


@dataclass(frozen=True)
class Pools:
    """How many processes do each step.

    denoisers: fewest and most.
    readers: most; 0: the denoisers read.
    writers: most; 0: the denoisers write.
    """

    denoisers: tuple[int, int]
    readers: int
    writers: int


def pools(config: Config, *, num_blocks: int, num_cpus: int, use_gpu: bool) -> Pools:
    """The pools of a job. Each process has a CPU.

    Readers and writers get only CPUs that the denoisers leave: else some might never start.

    config: of the job.
    num_blocks: of the plan; more denoisers would have nothing to do.
    num_cpus: that the cluster has or can grow to.
    use_gpu: whether denoisers have a GPU each.
    Raises UserError if generate.num_writers does not fit. A number that is set is kept: readers get what the
    writers leave.
    """
    least, most = (min(count, num_blocks) for count in config.generate.worker_range)
    left, writers = num_cpus - most, config.generate.num_writers
    readers = -(-most // DENOISERS_PER_READER) if streams_read(config.generate.task) else 0
    if writers is None:
        readers = min(readers, max(0, left - 1))
        writers = max(0, left - readers) if use_gpu else 0
    elif writers > max(0, left):
        raise UserError(
            f"generate.num_writers={writers} beside {most} generating actors needs {most + writers} CPUs; "
            f"the cluster has {num_cpus}: lower either, or write generate.num_writers=0"
        )
    if not writers:
        return Pools((least, most), 0, 0)
    return Pools((least, most), min(readers, left - writers), writers)


def _made(config: Config, recipe: Recipe, batches: Sequence[bytes]) -> Iterator[list[dict]]:
    """The rows of each batch when its files are written, in the order in which they finish.

    Raises the UserError or StorageUnavailable of a batch.
    """
    import ray

    from proav.on_ray.resources import device_of, largest_resources, wants_gpu

    assert ray.is_initialized(), (
        "generate needs Ray: call ray.init() first, or proav.command_line.ray_session"
    )
    use_gpu = wants_gpu(config.generate.use_gpu)
    num_blocks = min(len(batches), MOST_BLOCKS)
    num_cpus = max(1, int(largest_resources().get("CPU", 1)))
    sizes = pools(config, num_blocks=num_blocks, num_cpus=num_cpus, use_gpu=use_gpu)
    own = ["denoise"] if sizes.readers else ["read", "denoise"]
    own += [] if sizes.writers else ["finish"]

    def actors(least: int, most: int) -> ray.data.ActorPoolStrategy:
        return ray.data.ActorPoolStrategy(min_size=least, max_size=most)

    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.target_max_block_size
    # Each batch leaves a stage as a block of its own, so that the next stage gets it at once
    context.enable_progress_bars, context.target_max_block_size = False, 1
    try:
        rows = [{"batch": batch, "arrays": b"", "error": ""} for batch in batches]
        made = ray.data.from_items(rows, override_num_blocks=num_blocks)
        if sizes.readers:
            tasks = ray.data.TaskPoolStrategy(size=sizes.readers)
            made = made.map(lambda row: Maker(recipe, ["read"])(row), compute=tasks, num_cpus=1)
        made = made.map(
            Maker,
            fn_constructor_kwargs={"recipe": recipe, "steps": own, "device": device_of(use_gpu)},
            compute=actors(*sizes.denoisers),
            num_cpus=1,
            num_gpus=int(use_gpu),
        )
        if sizes.writers:
            made = made.map(
                Maker,
                fn_constructor_kwargs={"recipe": recipe, "steps": ["finish"]},
                compute=actors(1, sizes.writers),
                num_cpus=1,
            )
        for row in made.iter_rows():
            if row["error"]:
                raise_from_text(row["error"])
            yield unpack(row["batch"])
    finally:
        context.enable_progress_bars, context.target_max_block_size = before
