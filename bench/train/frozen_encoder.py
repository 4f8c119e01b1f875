"""Trains the decoder of a finished MDSA again, with its encoder frozen.

    python -m bench.train.frozen_encoder RUN OUT [--clips 1600] [section.key=value ...]

Stored latents, and an ST-DiT trained on them, stay valid. RUN is a finished run of configs/demo.yaml.
Settings can change the decoder's losses. For example, with discriminators:

    python -m bench.train.frozen_encoder RUN OUT mdsa.loss.adversarial_start_clips=0

Prints the reconstruction of unseen sources before and after, and writes OUT/stdit/checkpoints: RUN's ST-DiT
with the new decoder. Ends with status 1 if the encoder's planes have changed. The clips of OUT are made and
measured like those of any run:

    python ray_jobs/generate.py --config OUT/config.yaml generate.num_samples=256
    python ray_jobs/evaluate.py --config OUT/config.yaml evaluate.real=FOLDER evaluate.fake=OUT/samples
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from proav.config import Config
from proav.config.reading import config_to_dict, load_config
from proav.data.feeds.feed import ClipFeed, evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.errors import UserError
from proav.generation.coder import LatentCoder, pixels_to_unit
from proav.metrics.blockiness import blockiness, blockiness_sound
from proav.metrics.fidelity import mel_error_db, psnr_db
from proav.models.mdsa import MDSA, Exchange
from proav.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from proav.train.autoencoder_step import AutoencoderStep
from proav.train.engines import TorchEngine
from proav.train.schedule import learning_rates

ENCODING = ("encoder.", "to_latents.", "multi_scale.", "spatial.", "group_cross.", "linear.")
"""Prefixes of the modules that decide the planes.

The linear path is one of them: each of its planes codes the residual of the earlier ones.
"""


class FrozenEncoder(nn.Module):
    """MDSA whose encoding has no gradient, so that its encoding weights are not trained."""

    def __init__(self, mdsa: MDSA) -> None:
        super().__init__()
        self.mdsa = mdsa
        for name, weight in mdsa.named_parameters():
            weight.requires_grad_(not name.startswith(ENCODING))

    def forward(self, video_BCTHW, mel_BTMS, *, exchange: Exchange, **_):
        with torch.no_grad():
            planes = self.mdsa.encode(video_BCTHW, mel_BTMS, exchange=exchange)
        return self.mdsa._decode(planes, exchange)  # not clamped, as in training


def measure(config: Config, mdsa: MDSA) -> dict[str, float]:
    """Means over the windows of evaluate.split: PSNR and log-mel error in dB, blockiness of both streams."""
    coder, store, rows = LatentCoder(config, mdsa.eval()), SegmentStore(config.data_folder), []
    mel_range = {name: getattr(config.mel, name) for name in ("floor_log10", "ceiling_log10")}
    windows = evaluation_windows(
        store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips
    )
    for index, start in windows:
        window = store.window(index, start, config.clip.num_frames, want=("video", "mel"))
        video, mel = torch.from_numpy(window["video"])[None], torch.from_numpy(window["mel"])[None].float()
        with torch.inference_mode():
            picture, sound = coder.decode(coder.encode(video, mel))
        rows.append(
            (
                float(psnr_db(pixels_to_unit(picture), pixels_to_unit(video))),
                float(mel_error_db(sound, mel, **mel_range)),
                blockiness(picture[0].numpy(), side=config.mdsa.plane_size),
                blockiness_sound(sound[0].numpy()),
            )
        )
    names = ("psnr_db", "mel_error_db", "blockiness", "blockiness_sound")
    return dict(zip(names, np.nanmean(np.array(rows), axis=0).round(3).tolist(), strict=True))


def train_decoder(config: Config, checkpoint: Checkpoint, num_clips: int) -> MDSA:
    """The MDSA of an ST-DiT checkpoint, with its decoder trained on `num_clips` more clips."""
    torch.manual_seed(config.seed)
    mdsa = MDSA(config)
    mdsa.load_state_dict(checkpoint.weights("mdsa"))
    train, device = config.mdsa.train, torch.device("cpu")
    engine = TorchEngine(FrozenEncoder(mdsa.train()), train, device=device)
    step, feed = AutoencoderStep(config, device=device), ClipFeed.of_mdsa(config)
    seen = 0
    for batch in feed.iterate(0, rank=0, world=1):
        engine.backward(step.loss(engine, batch, clips=max(seen, config.mdsa.alone_clips)).loss)
        step.backward_others(1)
        step.step_others()
        engine.step(learning_rates(train, seen))
        seen += train.batch_size
        if seen >= num_clips:
            break
    return mdsa.requires_grad_(True)  # for weights without a gradient torch would use other kernels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    own = [f"run_dir={arguments.out}", f"data.prepared={arguments.run / 'data'}"]
    rates = [f"mdsa.train.num_clips={arguments.clips}", "mdsa.train.warmup_clips=160"]
    try:
        config = load_config(str(arguments.run / "config.yaml"), [*rates, *arguments.overrides, *own])
        checkpoint = load_checkpoint(str(arguments.run / "stdit" / "checkpoints"), kind="stdit")
    except UserError as error:
        raise SystemExit(f"frozen_encoder: {error}") from None
    before = MDSA(config)
    before.load_state_dict(checkpoint.weights("mdsa"))
    found = {"before": measure(config, before)}
    began = time.monotonic()
    mdsa = train_decoder(config, checkpoint, arguments.clips)
    found |= {"after": measure(config, mdsa), "seconds": round(time.monotonic() - began)}
    with torch.inference_mode():
        same = _same_planes(config, before, mdsa)
    tensors = {"ema": checkpoint.weights("ema"), "mdsa": mdsa.state_dict()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        str(arguments.out / "stdit" / "checkpoints"), kind="stdit", clips=checkpoint.clips,
        step=checkpoint.step, config=config, tensors=tensors, labels=checkpoint.labels,
        latent_mean=checkpoint.latent_mean, latent_std=checkpoint.latent_std,
        mdsa_hash=checkpoint.mdsa_hash,
    )  # fmt: skip
    (arguments.out / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    print(json.dumps({"bench": "frozen_encoder", "clips": arguments.clips, "same_planes": same, **found}))
    raise SystemExit(0 if same else 1)


def _same_planes(config: Config, one: MDSA, other: MDSA) -> bool:
    """Whether both make the same planes of one unseen clip, bit for bit."""
    store = SegmentStore(config.data_folder)
    index, start = evaluation_windows(store, config, split=config.evaluate.split, max_clips=1)[0]
    window = store.window(index, start, config.clip.num_frames, want=("video", "mel"))
    given = (
        pixels_to_unit(torch.from_numpy(window["video"])[None]),
        torch.from_numpy(window["mel"])[None].float(),
    )
    planes, others = one.eval().encode(*given), other.eval().encode(*given)
    return all(torch.equal(planes[name], others[name]) for name in planes)


if __name__ == "__main__":
    main()
