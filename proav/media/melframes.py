"""Sound as mel images, one a video frame, and back: the audio half of ProAV-DiT's input (Figure 1), with no learned vocoder.

Not for files (`container.py`). The paper gives no mel settings; all are ours and live in `MelConfig`.
Letters: B clips, L sound samples, T frames, M mel bins (lowest first), S mel columns within a frame, F Fourier bins, J = T * S columns.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange, repeat

from proav.config import Config
from proav.errors import UserError
from proav.geometry import ClipGeometry
from proav.media.torchaudio import import_torchaudio

LIMITER_KNEE = 0.9
"""Sound above this magnitude is bent to stay below 1, in clips that would pass it."""


class MelFrames:
    """The transform of one configuration; holds no state that changes, works on any device and for any whole number of frames.

    Native grid [B, T, M, S], values in [-1, 1]: y = 2 (log10 m - floor) / (ceiling - floor) - 1, clipped, where m is the Slaney mel band
    (area-normalized filters on the magnitude of a Hann-window Fourier transform). -1 means silence.
    transform "whole": one Fourier transform over all of the sound, column j centred on sample j * hop and belonging to frame j // S; sound
    is taken as zero beyond its ends and the last column, centred on the end, is dropped. So the columns of a window equal those of the
    sound around it except within n_fft / 2 samples of its borders: the first 3 and last 2 of 256 at the default settings.
    transform "segment": every frame's sound is cut out and transformed alone in the same way; windows then agree everywhere.
    """

    def __init__(self, config: Config) -> None:
        self.geometry = ClipGeometry.from_config(config)
        self.settings = config.mel
        filters_FM = import_torchaudio().functional.melscale_fbanks(
            self.geometry.n_fft // 2 + 1,
            self.settings.min_hz,
            self.settings.max_hz,
            self.geometry.mel_bins,
            self.geometry.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters_MF = filters_FM.T.contiguous()
        self._inverse_FM = torch.linalg.pinv(self._filters_MF.double()).float()
        self._window = torch.hann_window(self.geometry.n_fft)

    def encode(self, waveform_BL: torch.Tensor) -> torch.Tensor:
        """Waveform in [-1, 1], L a whole number of frames, -> mel_BTMS, float32 in [-1, 1]. Raises UserError for another length."""
        batch, length = waveform_BL.shape
        frames, rest = divmod(length, self.geometry.samples_per_frame)
        if rest or not frames:
            raise UserError(f"{length} sound samples are no whole number of frames; expected a multiple of {self.geometry.samples_per_frame}")
        pieces = self._pieces(frames)
        spectrum_BFJ = self._transform(waveform_BL.float().reshape(batch * pieces, length // pieces)).abs()[..., :-1]
        mel_BMJ = self._filters_MF.to(spectrum_BFJ.device) @ spectrum_BFJ
        floor, ceiling = self.settings.floor_log10, self.settings.ceiling_log10
        level = mel_BMJ.clamp(min=10.0 ** (floor - 1)).log10()
        normalized = ((level - floor) * (2 / (ceiling - floor)) - 1).clamp(-1.0, 1.0)
        return rearrange(normalized, "(b p) m (t s) -> b (p t) m s", p=pieces, s=self.geometry.mel_steps).contiguous()

    def decode(self, mel_BTMS: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """mel_BTMS -> waveform_BL in [-1, 1], L = T * samples a frame, by pseudo-inverse filters and fast Griffin-Lim.

        seeds: one a clip; it alone decides the first phase, so that a clip sounds the same in any batch. Peaks above 1 are rounded off,
        see `_limit`.
        """
        batch, frames = mel_BTMS.shape[:2]
        assert len(seeds) == batch, (len(seeds), batch)
        pieces = self._pieces(frames)
        normalized = rearrange(mel_BTMS.float(), "b (p t) m s -> (b p) m (t s)", p=pieces)
        floor, ceiling = self.settings.floor_log10, self.settings.ceiling_log10
        mel_BMJ = 10.0 ** ((normalized.clamp(-1.0, 1.0) + 1) * ((ceiling - floor) / 2) + floor)
        mel_BMJ = mel_BMJ.masked_fill(normalized <= -1.0, 0.0)
        magnitude_BFJ = (self._inverse_FM.to(mel_BMJ.device) @ mel_BMJ).clamp(min=0.0)
        magnitude_BFJ = torch.cat([magnitude_BFJ, magnitude_BFJ[..., -1:]], dim=-1)  # the column that encode drops
        phase = torch.stack([_first_phase(seed, (pieces, *magnitude_BFJ.shape[1:])) for seed in seeds])
        phase = phase.flatten(0, 1).to(magnitude_BFJ.device)
        waveform = self._griffin_lim(magnitude_BFJ, phase, frames // pieces * self.geometry.samples_per_frame)
        return _limit(waveform.reshape(batch, -1))

    def tile(self, mel_BTMS: torch.Tensor, channels: int = 1) -> torch.Tensor:
        """The native grid as images of the video's size, image_BCTHW: every value a block of pixels, low frequencies in the bottom row."""
        rows, columns = self.geometry.tile
        return repeat(mel_BTMS.flip(2), "b t m s -> b c t (m rows) (s columns)", c=channels, rows=rows, columns=columns)

    def untile(self, image_BCTHW: torch.Tensor) -> torch.Tensor:
        """The mean over channels and blocks, mel_BTMS: the exact inverse of `tile`, and its least-squares inverse for other images."""
        rows, columns = self.geometry.tile
        blocks = rearrange(image_BCTHW, "b c t (m rows) (s columns) -> b t m s (c rows columns)", rows=rows, columns=columns)
        corner = blocks[..., :1]
        mean = corner + (blocks - corner).mean(dim=-1, keepdim=True)  # from the corner: the mean of equal values is that value, to the bit
        return mean.squeeze(-1).flip(2)

    def _pieces(self, frames: int) -> int:
        """Stretches of sound that are transformed alone."""
        return frames if self.settings.transform == "segment" else 1

    def _transform(self, waveform_BL: torch.Tensor) -> torch.Tensor:
        window = self._window.to(waveform_BL.device)
        return torch.stft(waveform_BL, self.geometry.n_fft, self.geometry.hop, window=window, center=True, pad_mode="constant", return_complex=True)

    def _griffin_lim(self, magnitude_BFJ: torch.Tensor, phase_BFJ: torch.Tensor, length: int) -> torch.Tensor:
        """Fast Griffin-Lim (Perraudin, Balazs, Sondergaard 2013): t <- c + momentum (c - c'), c the spectrum of the sound of magnitude * phase(t)."""
        window = self._window.to(magnitude_BFJ.device)
        momentum = self.settings.griffin_lim_momentum
        previous = torch.zeros_like(phase_BFJ)
        for _ in range(self.settings.griffin_lim_iterations):
            waveform = torch.istft(magnitude_BFJ * phase_BFJ, self.geometry.n_fft, self.geometry.hop, window=window, center=True, length=length)
            consistent = self._transform(waveform)
            phase_BFJ = consistent + momentum * (consistent - previous)
            phase_BFJ = phase_BFJ / phase_BFJ.abs().clamp(min=1e-16)
            previous = consistent
        return torch.istft(magnitude_BFJ * phase_BFJ, self.geometry.n_fft, self.geometry.hop, window=window, center=True, length=length)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch on one thread within the block: the last bits of mel images depend on the number of threads, and stored ones shall not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_phase(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit complex numbers of uniform angle, a function of the seed and the shape alone (drawn on the CPU for every device)."""
    angle = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (2 * torch.pi)
    return torch.polar(torch.ones_like(angle), angle)


def _limit(waveform_BL: torch.Tensor) -> torch.Tensor:
    """Brings clips whose peak passes 1 into [-1, 1] by bending what is above the knee (a tanh with slope 1 there); others stay as they are.

    Scaling such clips down as a whole was measured and is worse: one stray peak cost a loud clip up to 7.5 dB everywhere.
    """
    magnitude = waveform_BL.abs()
    room = 1 - LIMITER_KNEE
    bent = torch.where(magnitude > LIMITER_KNEE, LIMITER_KNEE + room * torch.tanh((magnitude - LIMITER_KNEE) / room), magnitude)
    limited = torch.where(magnitude.amax(dim=1, keepdim=True) > 1, bent.clamp(max=1.0), magnitude)
    return limited * waveform_BL.sign()
