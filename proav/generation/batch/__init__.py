"""Offline generation: many samples of one checkpoint to mp4 files, with Ray Data.

    plan.py       what is wanted: samples of labels or prompts in turn, windows of the data, or a listing
    listed.py     the rows of a listing
    manifest.py   what is there: samples/manifest.jsonl, and the parts from which a stopped job resumes
    making.py     the work on a batch: read what is given, denoise, finish the clips
    job.py        all of it on Ray

`proav/generation/pipeline.py` samples a batch. A sample is named by its index, and is a function of
(checkpoint, seed, number, label, vectors, what is given, settings). So a stopped job makes only the missing
samples when it is started again, and a finished one changes nothing.
"""

from proav.generation.batch.job import generate
from proav.generation.batch.manifest import of_one_job, read_samples

__all__ = ["generate", "of_one_job", "read_samples"]
