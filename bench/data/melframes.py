"""Round trip of real sound through mel images: error and cost of one or several settings, side by side.

    python -m bench.data.melframes [--config YAML] [--set KEY=VALUE ...] [--against SETTINGS ...] [FILE ...]

One clip from the middle of each file is turned into mel images and back. The error is the mean |dB| between
log-mel images of the original and of the result, at four window lengths that favour no setting. It is
measured once clean and once with normal noise of sigma 0.05 on the mel images, like a generator's error. Each
--against changes settings of mel in the configuration, such as "mel.n_fft=256 mel.hop=50". All settings are
measured in turn on each clip, so that their ratios are valid on a busy machine too. Prints a table and one
JSON line. The default files are those of examples/clips.

B sounds, L samples, T frames, M mel bins, S mel steps within a frame.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from proav.config import Config
from proav.config.reading import load_config
from proav.errors import MediaError
from proav.geometry import ClipGeometry
from proav.media.container import read_clip
from proav.media.melframes import MelFrames
from proav.media.torchaudio import import_torchaudio

REFERENCE_WINDOWS = (256, 512, 1024, 2048)
REFERENCE_FLOOR = 1e-4
NOISE_SIGMA = 0.05
GIVEN = ("clean", "noise")
SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".wmv")


def reference_decibels(waveform_BL: torch.Tensor, sample_rate: int, n_fft: int) -> torch.Tensor:
    """A log-mel image in dB, not by proav's code: Slaney bands, magnitude, hop n_fft / 4, floor -80 dB."""
    return 20 * reference_transform(sample_rate, n_fft)(waveform_BL).clamp(min=REFERENCE_FLOOR).log10()


@cache
def reference_transform(sample_rate: int, n_fft: int) -> Callable[[torch.Tensor], torch.Tensor]:
    bands = 40 if n_fft == 256 else 64  # as many as a short window fills
    return import_torchaudio().transforms.MelSpectrogram(
        sample_rate,
        n_fft=n_fft,
        hop_length=n_fft // 4,
        n_mels=bands,
        power=1.0,
        norm="slaney",
        mel_scale="slaney",
    )


def middle_of(file: str, geometry: ClipGeometry) -> torch.Tensor | None:
    """One clip of sound from the middle of the file; None if the file is unreadable or too short."""
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


class Contender:
    """One configuration, and the time and the errors of its round trips so far."""

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config, self.mel_frames = name, config, MelFrames(config)
        self.milliseconds: dict[str, list[float]] = {"encode": [], "decode": []}
        self.errors: dict[str, list[list[float]]] = {name: [] for name in GIVEN}

    def measure(self, waveform_L: torch.Tensor, seed: int) -> None:
        """Measures one clip. seed: for the noise, and for the first phases of decoding."""
        mel_BTMS = self._timed("encode", lambda: self.mel_frames.encode(waveform_L[None]))
        noise = NOISE_SIGMA * torch.randn(mel_BTMS.shape, generator=torch.Generator().manual_seed(seed))
        for name, given in zip(GIVEN, (mel_BTMS, (mel_BTMS + noise).clamp(-1, 1))):
            restored_L = self._timed("decode", lambda: self.mel_frames.decode(given, [seed]))[0]
            self.errors[name].append(self._errors(waveform_L, restored_L))

    def row(self, first: "Contender") -> dict:
        """This configuration's numbers; `decode_ratio` and `clips_worse` (clean) compare with `first`."""
        row: dict = {"setting": self.name}
        for name, errors in self.errors.items():
            for n_fft, error in zip(REFERENCE_WINDOWS, np.mean(errors, axis=0)):
                row[f"{name}_{n_fft}"] = round(float(error), 3)
        mine, theirs = (np.mean(contender.errors["clean"], axis=1) for contender in (self, first))
        row |= {f"{name}_ms": round(float(np.mean(values)), 2) for name, values in self.milliseconds.items()}
        row["decode_ratio"] = round(sum(self.milliseconds["decode"]) / sum(first.milliseconds["decode"]), 3)
        return row | {"clips_worse": int((mine > theirs).sum()), "mel": self.config.mel.model_dump()}

    def _timed(self, name: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        begun = time.process_time()
        result = work()
        self.milliseconds[name].append(1000 * (time.process_time() - begun))
        return result

    def _errors(self, waveform_L: torch.Tensor, restored_L: torch.Tensor) -> list[float]:
        """Mean |dB| for each of the reference windows."""
        sounds_BL, rate = torch.stack([waveform_L, restored_L]), self.config.clip.sample_rate
        pictures = [reference_decibels(sounds_BL, rate, n_fft) for n_fft in REFERENCE_WINDOWS]
        return [float((before - after).abs().mean()) for before, after in pictures]


def print_table(rows: list[dict]) -> None:
    """Prints the rows in Markdown; milliseconds are processor time for one clip."""
    print("| setting | clean | noise | clips worse than first | encode ms | decode ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = [[f"{row[f'{name}_{n_fft}']:.2f}" for n_fft in REFERENCE_WINDOWS] for name in GIVEN]
        times = [f"{row['encode_ms']:.2f}", f"{row['decode_ms']:.1f}", f"{row['decode_ratio']:.2f}"]
        cells = [row["setting"], *map(" / ".join, numbers), str(row["clips_worse"]), *times]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--config", metavar="YAML", help="a configuration; without it the defaults")
    many = {"action": "append", "default": []}
    parser.add_argument(
        "--set", **many, metavar="KEY=VALUE", help="a setting for all rows, such as mel.hop=50"
    )
    parser.add_argument("--against", **many, metavar="SETTINGS", help="settings of mel to compare with")
    arguments = parser.parse_args()
    for word in " ".join(arguments.against).split():
        if not word.startswith("mel."):
            parser.error(f"--against {word}: expected a setting of mel, such as mel.n_fft=1024")
    examples = sorted(str(file) for file in Path("examples/clips").iterdir() if file.suffix in SUFFIXES)
    contenders = [Contender("as configured", load_config(arguments.config, arguments.set))]
    for words in arguments.against:
        contenders.append(Contender(words, load_config(arguments.config, [*arguments.set, *words.split()])))
    geometry = ClipGeometry.from_config(contenders[0].config)
    found = (middle_of(file, geometry) for file in arguments.files or examples)
    sounds = [sound for sound in found if sound is not None]
    if not sounds:
        raise SystemExit("no sound to measure; expected files with sound, such as examples/clips/*.mp4")

    for contender in contenders:  # the first call of a process also loads libraries
        contender.mel_frames.decode(contender.mel_frames.encode(sounds[0][None]), [0])
    for seed, sound in enumerate(sounds):
        for contender in contenders:
            contender.measure(sound, seed)

    rows = [contender.row(contenders[0]) for contender in contenders]
    windows, threads = " / ".join(map(str, REFERENCE_WINDOWS)), torch.get_num_threads()
    print(f"{len(sounds)} clips of {geometry.seconds:g} s; mean |dB| at n_fft {windows}; {threads} threads\n")
    print_table(rows)
    print("\n" + json.dumps({"bench": "melframes", "clips": len(sounds), "rows": rows}))


if __name__ == "__main__":
    main()
