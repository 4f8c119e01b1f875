"""Augmentation of the clips that MDSA trains on.

Every change is decided by (seed, position) alone, so a resumed run sees the same clips. The random draws are
in `order.py`. Stored latents are not changed here: `proav/latents/encode.py` stores the mirrored windows.

Letters: b clips, T frames, H W rows and columns, M mel bins, S mel columns in a frame.
"""

import numpy as np
import torch

from proav.config import Config
from proav.data.feeds.order import colours, flips, gains, turns
from proav.data.store.shards import SegmentStore
from proav.media.melframes import MelFrames, one_torch_thread


class PictureChanges:
    """Mirrors pictures, turns them, and changes their colours.

    config: gives the clip's height and width.
    seed: of the run.
    flip: mirror left to right, with probability 1/2.
    turned: mirror top to bottom, and transpose if pictures are square, with probability 1/2 each. Together
        with flip these are the eight symmetries of the square.
    colour: in [0, 1]. Pixels in [-1, 1] are multiplied by a contrast, uniform in [1 - colour, 1 + colour].
        Then a brightness is added, uniform in [-colour / 2, colour / 2]. The result is clamped and rounded.
    """

    def __init__(
        self, config: Config, seed: int, *, flip: bool = False, turned: bool = False, colour: float = 0.0
    ) -> None:
        self.seed, self.flip, self.turned, self.colour = seed, flip, turned, colour
        self.square = config.clip.height == config.clip.width

    def mirrored(self, positions: np.ndarray) -> np.ndarray:
        """bool [b]: which clips are mirrored left to right."""
        return flips(self.seed, positions) if self.flip else np.zeros(len(positions), bool)

    def __call__(self, pictures: list[np.ndarray], positions: np.ndarray) -> torch.Tensor:
        """b pictures of uint8 [T, H, W, 3] -> uint8 [b, T, H, W, 3]."""
        still = np.zeros((2, len(positions)), bool)
        upside_down, transposed = turns(self.seed, positions) if self.turned else still
        contrasts, brightnesses = colours(self.seed, positions, self.colour)
        changed = []
        for place, mirrored in enumerate(self.mirrored(positions)):
            picture = torch.from_numpy(pictures[place])  # torch mirrors five times faster than NumPy
            axes = [axis for axis, mirror in ((1, upside_down[place]), (2, mirrored)) if mirror]
            picture = picture.flip(axes)
            if transposed[place] and self.square:
                picture = picture.transpose(1, 2)
            if self.colour:
                picture = recoloured(picture, contrasts[place], brightnesses[place])
            changed.append(picture)
        return torch.stack(changed)


def recoloured(picture: torch.Tensor, contrast: float, brightness: float) -> torch.Tensor:
    """uint8 -> uint8: contrast * x + brightness for pixels x in [-1, 1], clamped and rounded."""
    shift = 127.5 * (1 - contrast + brightness)
    return picture.float().mul_(contrast).add_(shift).round_().clamp_(0, 255).to(torch.uint8)


def raised(mel_TMS: np.ndarray, num_bins: int) -> np.ndarray:
    """Mel frames moved up by `num_bins` bins (down if negative); the edge bin fills the gap."""
    bins = np.arange(mel_TMS.shape[1])
    return mel_TMS[:, np.clip(bins - num_bins, 0, len(bins) - 1)]


class Louder:
    """Sound with another gain, and its mel.

    The mel is made from the sound of the whole segment, as the stored mel was. Shifting the stored mel would
    be cheaper, but wrong for values that were clipped at the mel's floor or ceiling.
    """

    def __init__(self, config: Config, most_db: float) -> None:
        self.most_db, self.mel_frames = most_db, MelFrames(config)

    def draw(self, seed: int, positions: np.ndarray, peaks: np.ndarray) -> np.ndarray:
        """float32 [b]: gains in dB; no gain lifts a peak above full scale."""
        headroom_db = -20 * np.log10(np.maximum(peaks, 1e-9))
        return np.minimum(gains(seed, positions, self.most_db), headroom_db).astype(np.float32)

    def sound(
        self, store: SegmentStore, index: int, start: int, count: int, gain_db: float
    ) -> dict[str, np.ndarray]:
        """mel and audio of a window, as `SegmentStore.window` gives them.

        store: the data set.
        index: the segment's place in the store.
        start: the window's first frame.
        count: the window's length in frames.
        gain_db: gain in dB, from `draw`.
        """
        audio = store.window(index, want=("audio",))["audio"] * np.float32(10 ** (gain_db / 20))
        with one_torch_thread():
            mel = self.mel_frames.encode(torch.from_numpy(audio)[None])[0].numpy().astype(np.float16)
        per_frame = len(audio) // len(mel)
        return {
            "mel": mel[start : start + count],
            "audio": audio[start * per_frame : (start + count) * per_frame],
        }
