"""Round trip of real sound through mel images: error and cost. `python bench/melframes.py [--set mel.KEY=VALUE ...] [FILE ...]`

From the middle of each file one clip is taken, turned into mel images and back; the error is the mean |dB| between log-mel pictures of
the original and of the result, at four window lengths that favour no setting, once clean and once with normal noise of sigma 0.05 on
the mel images (what a generator's error looks like). Prints a table and one JSON line. Files: default examples/clips.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from proav.errors import MediaError
from proav.geometry import ClipGeometry
from proav.media.container import read_clip
from proav.media.melframes import MelFrames
from proav.media.torchaudio import import_torchaudio
from proav.settings import load_config

REFERENCE_WINDOWS = (256, 512, 1024, 2048)
REFERENCE_FLOOR = 1e-4
NOISE_SIGMA = 0.05


def reference_decibels(waveform_BL: torch.Tensor, sample_rate: int, n_fft: int) -> torch.Tensor:
    """An independent log-mel picture in dB: Slaney bands of the magnitude, hop n_fft / 4, floored at -80 dB."""
    bands = 40 if n_fft == 256 else 64  # as many as a short window fills
    transform = import_torchaudio().transforms.MelSpectrogram(
        sample_rate, n_fft=n_fft, hop_length=n_fft // 4, n_mels=bands, power=1.0, norm="slaney", mel_scale="slaney"
    )
    return 20 * transform(waveform_BL).clamp(min=REFERENCE_FLOOR).log10()


def middle_of(file: str, geometry: ClipGeometry) -> torch.Tensor | None:
    """One clip of sound from the middle of the file; None where the file has not enough."""
    try:
        clip = read_clip(file, fps=geometry.fps, sample_rate=geometry.sample_rate, height=16, width=16)
    except MediaError as error:
        print(f"left out {file}: {error}")
        return None
    start = (len(clip.video) - geometry.num_frames) // 2 * geometry.samples_per_frame
    if start < 0:
        print(f"left out {file}: shorter than one clip")
        return None
    return torch.from_numpy(clip.audio[start : start + geometry.num_samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, such as mel.n_fft=1024")
    arguments = parser.parse_args()
    files = arguments.files or sorted(str(file) for file in Path("examples/clips").glob("*.*") if file.suffix in (".mp4", ".webm", ".mkv", ".avi"))
    config = load_config(None, arguments.set)
    geometry, mel_frames = ClipGeometry.from_config(config), MelFrames(config)
    sounds = [sound for file in files if (sound := middle_of(file, geometry)) is not None]
    if not sounds:
        raise SystemExit("no sound to measure; expected files with sound, such as bench/melframes.py examples/clips/*.mp4")

    waveform_BL = torch.stack(sounds)
    begun = time.process_time()
    mel_BTMS = mel_frames.encode(waveform_BL)
    encode_ms = 1000 * (time.process_time() - begun) / len(sounds)
    noise = NOISE_SIGMA * torch.randn(mel_BTMS.shape, generator=torch.Generator().manual_seed(0))
    results = {}
    for name, given in (("clean", mel_BTMS), ("noise", (mel_BTMS + noise).clamp(-1, 1))):
        begun = time.process_time()
        restored_BL = torch.cat([mel_frames.decode(mel[None], [seed]) for seed, mel in enumerate(given)])
        decode_ms = 1000 * (time.process_time() - begun) / len(sounds)
        for n_fft in REFERENCE_WINDOWS:
            difference = reference_decibels(waveform_BL, geometry.sample_rate, n_fft) - reference_decibels(restored_BL, geometry.sample_rate, n_fft)
            results[f"{name}_{n_fft}"] = round(float(difference.abs().mean()), 3)

    print(f"{len(sounds)} clips of {geometry.seconds:g} s; mean |dB| at n_fft " + " / ".join(map(str, REFERENCE_WINDOWS)))
    for name in ("clean", "noise"):
        print(f"  {name:6}" + " / ".join(f"{results[f'{name}_{n_fft}']:.2f}" for n_fft in REFERENCE_WINDOWS))
    print(f"  encode {encode_ms:.2f}, decode {decode_ms:.1f} processor ms a clip, {torch.get_num_threads()} threads")
    settings = config.mel.model_dump()
    print(
        json.dumps(
            {
                "bench": "melframes",
                "clips": len(sounds),
                **results,
                "encode_ms": round(encode_ms, 3),
                "decode_ms": round(decode_ms, 2),
                "mel": settings,
            }
        )
    )


if __name__ == "__main__":
    main()
