"""MDSA's reconstructions of clips, scored beside trivial predictions of the same clips.

No feature network is needed. The mathematics is in proav/metrics.

Letters: B clips, T frames, H and W rows and columns, M mel bins, S mel steps within a frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import evaluation_windows, evenly_spread
from proav.data.store.shards import SegmentStore
from proav.evaluate.yardsticks import Yardsticks
from proav.generation.coder import LatentCoder, load_coder, pixels_to_unit
from proav.generation.sampling_settings import changed_settings
from proav.geometry import PLANES_PER_MODALITY
from proav.media.container import Clip
from proav.media.melframes import one_torch_thread
from proav.metrics.fidelity import mean_colour, mean_mel, mel_error_db, psnr_db, temporal_mean
from proav.runs.checkpoint import load_checkpoint
from proav.runs.layout import RunFolder

NUM_SHOWN = 6
"""Number of reconstructions that are kept as mp4 files for the report."""
SCORES = (
    "psnr_db",
    "psnr_mean_colour_db",
    "psnr_temporal_mean_db",
    "mel_error_db",
    "mel_error_mean_mel_db",
    "psnr_lone_db",
    "mel_error_lone_db",
    "psnr_leak_db",
    "mel_error_leak_db",
)
"""The scores of each clip from `reconstruct`."""
OF_MOVING = "psnr_temporal_mean_db"
"""The score that is infinite for still clips."""


@dataclass(frozen=True)
class Reconstructed:
    """Reconstructed clips and their scores.

    clips: empty if brief.
    scores: {name: [B]} of SCORES and, if given, of the yardsticks. If brief, the lone and leak scores are
        missing. A PSNR is infinite if the prediction equals the clip exactly.
    """

    clips: list[Clip]
    scores: dict[str, np.ndarray]


@torch.inference_mode()
def reconstruct(
    coder: LatentCoder,
    config: Config,
    windows: Sequence[dict],
    *,
    seeds: Sequence[int] = (),
    brief: bool = False,
    yardsticks: Yardsticks | None = None,
) -> Reconstructed:
    """Encodes windows of prepared segments and decodes them again, in three ways.

    The ways are: jointly; each modality without the other (lone); each modality from the other's planes
    (`leaked`).

    coder: MDSA.
    config: of the run.
    windows: as `SegmentStore.window` returns them.
    seeds: for the phases of the sound, one for each window.
    brief: only the joint scores, and no clips.
    yardsticks: baselines that are scored too, or None.
    """
    video, mel = _stacked(windows)
    planes = coder.encode(video, mel)
    on_device = coder.decode(planes)
    decoded_video, decoded_mel = (value.cpu() for value in on_device)
    unit, decoded, mel_range = pixels_to_unit(video), pixels_to_unit(decoded_video), _mel_range(config)
    scores = {
        "psnr_db": psnr_db(decoded, unit),
        "mel_error_db": mel_error_db(decoded_mel, mel, **mel_range),
        **trivial_scores(config, unit, mel, yardsticks),
    }
    if not brief:
        lone_video, lone_mel = (
            value.cpu() for value in coder.decode(coder.encode(video, mel, lone=True), lone=True)
        )
        scores["psnr_lone_db"] = psnr_db(pixels_to_unit(lone_video), unit)
        scores["mel_error_lone_db"] = mel_error_db(lone_mel, mel, **mel_range)
        leaked_video, leaked_mel = (value.cpu() for value in leaked(coder, planes))
        scores["psnr_leak_db"] = psnr_db(pixels_to_unit(leaked_video), unit)
        scores["mel_error_leak_db"] = mel_error_db(leaked_mel, mel, **mel_range)
    clips = [] if brief else coder.to_clips(*on_device, seeds=seeds)
    return Reconstructed(clips, {name: values.numpy() for name, values in scores.items()})


def leaked(coder: LatentCoder, planes_BDPNN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures decoded from the sound's planes, and mel images from the pictures'; like `LatentCoder.decode`.

    A modality's own planes are zero. So whatever is better than the training clips' mean has leaked through
    the other modality's planes.

    planes_BDPNN: of both modalities, encoded jointly.
    """
    of_sound, of_picture = planes_BDPNN.clone(), planes_BDPNN.clone()
    of_sound[:, :, :PLANES_PER_MODALITY] = 0
    of_picture[:, :, PLANES_PER_MODALITY:] = 0
    return coder.decode(of_sound)[0], coder.decode(of_picture)[1]


def _stacked(windows: Sequence[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 [B, T, H, W, 3] and mels float32 [B, T, M, S]."""
    video = torch.from_numpy(np.stack([window["video"] for window in windows]))
    return video, torch.from_numpy(np.stack([window["mel"] for window in windows])).float()


def _mel_range(config: Config) -> dict[str, float]:
    return {"floor_log10": config.mel.floor_log10, "ceiling_log10": config.mel.ceiling_log10}


def trivial_scores(
    config: Config, unit: torch.Tensor, mel: torch.Tensor, yardsticks: Yardsticks | None
) -> dict[str, torch.Tensor]:
    """Scores that need no MDSA: those of the clip's own means and, if given, of the yardsticks.

    If the mean colour equals the clip exactly, the yardsticks' PSNR is set to infinity too. They predict such
    a clip perfectly, except for rounding.

    config: gives the range of mel values.
    unit: pictures in [-1, 1], [B, C, T, H, W].
    mel: [B, T, M, S] in [-1, 1].
    yardsticks: the fitted codes, or None.
    """
    mel_range = _mel_range(config)
    scores = {
        "psnr_mean_colour_db": psnr_db(mean_colour(unit), unit),
        "psnr_temporal_mean_db": psnr_db(temporal_mean(unit), unit),
        "mel_error_mean_mel_db": mel_error_db(mean_mel(mel), mel, **mel_range),
    }
    if yardsticks is not None:
        one_colour = scores["psnr_mean_colour_db"].isinf()
        for name, picture in yardsticks.pictures(unit).items():
            scores[f"psnr_{name}_db"] = psnr_db(picture, unit).masked_fill(one_colour, torch.inf)
        for name, sound in yardsticks.sounds(mel).items():
            scores[f"mel_error_{name}_db"] = mel_error_db(sound, mel, **mel_range)
    return scores


def evaluate_reconstruction(config: Config, checkpoint_path: str, *, device: str = "cpu") -> dict:
    """Means of the joint scores over the clips of `evaluate.split`; a sweep compares these."""
    coder = load_coder(load_checkpoint(checkpoint_path, kind="mdsa"), device=device)
    return mean_over_windows(config, lambda windows: reconstruct(coder, config, windows, brief=True).scores)


@torch.inference_mode()
def evaluate_yardsticks(config: Config, yardsticks: Yardsticks | None) -> dict:
    """Means of the scores that need no MDSA, over the clips of `evaluate.split`; see `trivial_scores`."""

    def measure(windows: Sequence[dict]) -> dict[str, np.ndarray]:
        video, mel = _stacked(windows)
        scores = trivial_scores(config, pixels_to_unit(video), mel, yardsticks)
        return {name: values.numpy() for name, values in scores.items()}

    with one_torch_thread():
        return mean_over_windows(config, measure)


def mean_over_windows(config: Config, measure: Callable[[Sequence[dict]], dict[str, np.ndarray]]) -> dict:
    """`mean_scores` of the results of `measure` for the windows of evaluate.split, batch by batch."""
    store = SegmentStore(config.data_folder)
    windows = evaluation_windows(
        store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips
    )
    parts = []
    for first in range(0, len(windows), config.encode.batch_size):
        batch = windows[first : first + config.encode.batch_size]
        parts.append(measure([store.window(index, start, config.clip.num_frames) for index, start in batch]))
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return mean_scores(
        scores, sources=[store.rows[index]["source_id"] for index, _ in windows], config=config
    )


def mean_scores(scores: dict[str, np.ndarray], *, sources: Sequence[str], config: Config) -> dict:
    """Means over clips, with the number of clips and the protocol.

    Clips that equal their mean colour exactly are left out and counted, since that prediction is perfect. For
    the same reason, still clips are left out of the temporal mean's PSNR, and of nothing else. It is None if
    all clips are still.
    """
    used = ~np.isposinf(scores["psnr_mean_colour_db"])
    means = {name: float(values[used].mean()) for name, values in scores.items() if name != OF_MOVING}
    num_still = 0
    if OF_MOVING in scores:
        moving = used & ~np.isposinf(scores[OF_MOVING])
        means[OF_MOVING] = float(scores[OF_MOVING][moving].mean()) if moving.any() else None
        num_still = int(used.sum() - moving.sum())
    return {
        **{name: means[name] for name in scores},
        "num_clips": int(used.sum()),
        "num_one_colour_clips_left_out": int((~used).sum()),
        "num_still_clips_without_temporal_mean": num_still,
        "num_sources": len(set(sources)),
        "protocol": f"mean over non-overlapping windows of {config.clip.num_frames} frames of the "
        f"{config.evaluate.split} sources, moving-average weights; "
        "PSNR over all pixels of a clip, peak 255; mean colour and temporal mean are the clip's own; "
        "log-mel error is mean |difference| over the native mel grid; "
        "lone: each modality encoded and decoded without the other; "
        "leak: each modality decoded from the other's planes, its own at zero; "
        "temporal mean of clips that are not still; "
        "linear planes and cosine, if given: see yardsticks",
    }


def save_shown(config: Config, checkpoint_path: str, *, device: str = "cpu") -> None:
    """Writes eval/reconstructions/NNN_real.mp4 and NNN_reconstructed.mp4 of a few clips for the report.

    NNN is the clip's index among those measured.
    """
    checkpoint = load_checkpoint(checkpoint_path, kind="mdsa")
    coder = load_coder(checkpoint, device=device, settings=changed_settings(checkpoint.config, config))
    store = SegmentStore(config.data_folder)
    windows = evaluation_windows(
        store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips
    )
    folder = RunFolder(config).reconstructions
    storage.delete_folder(folder)  # the pairs of an earlier evaluation may have other names
    for number in evenly_spread(len(windows), NUM_SHOWN).tolist():
        index, start = windows[number]
        window = store.window(index, start, config.clip.num_frames)
        (clip,) = reconstruct(coder, config, [window], seeds=[number]).clips
        real = Clip(window["video"], window["audio"], config.clip.fps, config.clip.sample_rate)
        for kind, one in (("real", real), ("reconstructed", clip)):
            one.save(storage.join(folder, f"{number:03d}_{kind}.mp4"))
