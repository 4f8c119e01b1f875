"""Jobs of the masked tasks, from the upload to the mp4; the clip is the pipeline's."""

import io

from proav.generation.pipeline import SoundingVideoPipeline
from proav.media.container import encode_clip, read_clip
from proav.serve.on_ray.sampler import Sampler
from proav.serve.settings import ServeSettings
from tests.serve.queue.scenarios import after_a_restart
from tests.synthetic_clips import make_clip


def test_masked_tasks_give_what_the_pipeline_gives(masked_checkpoint, tmp_path):
    """An upload is decoded, kept, read by another server, sampled and written."""
    pipeline = SoundingVideoPipeline.from_checkpoint(masked_checkpoint)
    settings = ServeSettings(checkpoint=masked_checkpoint, jobs_dir=str(tmp_path / "jobs"))
    sampler = Sampler(masked_checkpoint, device="cpu")
    upload = encode_clip(make_clip(1, seconds=1.2))
    clip = read_clip(io.BytesIO(upload), fps=5, sample_rate=16_000, height=32, width=32, fit="crop")
    asked = {
        "i2av": {},
        "continue": {"num_windows": 3},
        "inpaint": {"span": (0.2, 0.4), "stream": "video"},
    }

    fields = [{"task": task, "seed": 3, "steps": 2, **more} for task, more in asked.items()]
    made = after_a_restart(settings, sampler, [(one, upload) for one in fields])
    assert [seconds for seconds, _ in made] == ["0.8", "2.4", "0.8"]  # 1.2 s, and 0.4 s three times
    for (task, more), (_, mp4) in zip(asked.items(), made, strict=True):
        (expected,) = pipeline(task=task, clip=clip, seed=3, steps=2, guidance_scale=1.5, **more)
        assert mp4 == encode_clip(expected), task
