"""Offline generation: many samples of one checkpoint to mp4 files, with Ray Data.

    plan.py       what is wanted: samples of labels in turn, or the rows of a listing
    manifest.py   what is there: samples/manifest.jsonl, and the parts from which a job goes on
    making.py     the work on a batch: read what is given, denoise, finish the clips
    job.py        all of it on Ray

How a batch is sampled is `proav/generation/pipeline.py`. A sample has an index for a name, and is a function
of (checkpoint, seed, number, label, what is given, settings). So a job that was stopped makes only the
missing samples when it is started again, and a finished one changes nothing.
"""

from proav.generation.batch.job import generate
from proav.generation.batch.manifest import read_samples

__all__ = ["generate", "read_samples"]
