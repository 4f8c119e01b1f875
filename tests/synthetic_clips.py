"""Small made videos with sound.

All videos differ, and the brightness of a frame follows its number, so a mix-up can be seen.
"""

import numpy as np

from proav.media.container import Clip

FPS, SAMPLE_RATE = 10, 16000


def make_clip(
    number: int, *, seconds: float, silent: bool = False, height: int = 48, width: int = 64
) -> Clip:
    """A bright square that moves over a background; colour and pitch depend on the number.

    number: number of the clip
    seconds: length
    silent: whether all samples are zero
    height, width: rows and columns in pixels
    """
    frames = round(seconds * FPS)
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[:] = np.array([(40 * number) % 256, (90 * number + 60) % 256, 120], np.uint8)
    for index, frame in enumerate(video):
        left = (4 * index + 7 * number) % (width - 16)
        frame[8:24, left : left + 16] = 255 - (6 * index) % 200
    times = np.arange(frames * SAMPLE_RATE // FPS) / SAMPLE_RATE
    audio = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * times) * (1 + 0.5 * np.sin(2 * np.pi * 2 * times))
    return Clip(
        video, np.zeros_like(audio, np.float32) if silent else audio.astype(np.float32), FPS, SAMPLE_RATE
    )


def write_clips(root, lengths: dict[str, float]) -> str:
    """Writes mp4 files below `root`: {"rain/a.mp4": 4.5, ...} (seconds); returns the folder."""
    for number, (name, seconds) in enumerate(lengths.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        make_clip(number, seconds=seconds).save(str(root / name))
    return str(root)


def prepare(config) -> dict:
    """Preprocessing without Ray: all units run in this process."""
    from proav.data.prepare.finish import finish
    from proav.data.prepare.plan import settle_plan
    from proav.data.prepare.source_decoder import SourceDecoder
    from proav.data.prepare.unit import process_unit
    from proav.data.sources.finding import find_sources

    data_dir, sources, decoder = f"{config.run_folder}/data", find_sources(config), SourceDecoder(config)
    units = settle_plan(config, data_dir, sources).units()
    return finish(
        config, data_dir, sources, [process_unit(config, data_dir, unit, decoder) for unit in units]
    )
