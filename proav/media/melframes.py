"""Sound as mel images, one per video frame, and back, without a learned vocoder.

This is the audio half of ProAV-DiT's input (Figure 1). The paper gives no mel settings; ours are in
`MelConfig` (`proav/config/clip.py`). Files are read in `container.py`.
Letters: B clips, L sound samples, T frames, M mel bins (lowest first), S mel columns within a frame,
F Fourier bins, J = T * S columns, C channels, H and W rows and columns, N samples in a Fourier window.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from einops import rearrange

from proav.config import Config
from proav.errors import UserError
from proav.geometry import ClipGeometry
from proav.media.torchaudio import import_torchaudio

TINY = 1e-16
"""Smallest divisor: far below audible levels, and large enough that no quotient overflows float32."""
LIMITER_KNEE = 0.9
"""If a clip's peak would exceed 1, sound above this magnitude is compressed to stay below 1."""


class MelFrames:
    """The mel transform of one configuration, on any device and for any whole number of frames.

    It has no changing state.

    Native grid [B, T, M, S], values in [-1, 1]: y = 2 (log10 m - floor) / (ceiling - floor) - 1, clipped.
    m is the Slaney mel band: area-normalized filters on the magnitude of a Hann-window Fourier transform.
    -1 means silence.

    transform "whole": one Fourier transform over all of the sound. Column j is centred on sample j * hop and
    belongs to frame j // S. Sound is taken as zero beyond its ends. The last column, centred on the end, is
    dropped. So the columns of a window equal those of the whole sound, except within n_fft / 2 samples of the
    window's borders. At the default settings these are the first 3 and the last 2 of 256.
    transform "segment": every frame's sound is cut out and transformed alone, in the same way. All columns of
    a window then equal those of the whole sound.
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
        self._window = torch.hann_window(self.geometry.n_fft)

    @cached_property
    def _inverse_FM(self) -> torch.Tensor:
        return torch.linalg.pinv(self._filters_MF.double()).float()

    def encode(self, waveform_BL: torch.Tensor) -> torch.Tensor:
        """Waveform in [-1, 1] -> mel_BTMS, float32 in [-1, 1].

        Raises UserError if L is not a whole number of frames.
        """
        batch, length = waveform_BL.shape
        frames, rest = divmod(length, self.geometry.samples_per_frame)
        if rest or not frames:
            raise UserError(
                f"{length} sound samples are no whole number of frames; "
                f"expected a multiple of {self.geometry.samples_per_frame}"
            )
        pieces = self._pieces(frames)
        spectrum_BFJ = self._transform(waveform_BL.float().reshape(batch * pieces, length // pieces)).abs()[
            ..., :-1
        ]
        mel_BMJ = self._filters_MF.to(spectrum_BFJ.device) @ spectrum_BFJ
        floor, ceiling = self.settings.floor_log10, self.settings.ceiling_log10
        level = mel_BMJ.clamp(min=10.0 ** (floor - 1)).log10()
        normalized = ((level - floor) * (2 / (ceiling - floor)) - 1).clamp(-1.0, 1.0)
        return rearrange(
            normalized, "(b p) m (t s) -> b (p t) m s", p=pieces, s=self.geometry.mel_steps
        ).contiguous()

    def decode(self, mel_BTMS: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """mel_BTMS -> waveform_BL in [-1, 1], L = T * samples per frame, by fast Griffin-Lim towards its
        bands.

        seeds: one per clip. The seed alone decides the first phase, so a clip sounds the same in any batch.
        Peaks above 1 are limited, see `_limit`.
        """
        batch, frames = mel_BTMS.shape[:2]
        assert len(seeds) == batch, (len(seeds), batch)
        pieces = self._pieces(frames)
        normalized = rearrange(mel_BTMS.float(), "b (p t) m s -> (b p) m (t s)", p=pieces)
        floor, ceiling = self.settings.floor_log10, self.settings.ceiling_log10
        mel_BMJ = 10.0 ** ((normalized.clamp(-1.0, 1.0) + 1) * ((ceiling - floor) / 2) + floor)
        mel_BMJ = mel_BMJ.masked_fill(normalized <= -1.0, 0.0)
        mel_BMJ = torch.cat([mel_BMJ, mel_BMJ[..., -1:]], dim=-1)  # the column that encode drops
        shape_FJ = self._filters_MF.shape[1], mel_BMJ.shape[-1]
        phase_BFJ = torch.stack([_first_phase(seed, (pieces, *shape_FJ)) for seed in seeds]).flatten(0, 1)
        length = frames // pieces * self.geometry.samples_per_frame
        waveform = self._griffin_lim(mel_BMJ.mT, phase_BFJ.mT.to(mel_BMJ.device), length)
        return _limit(waveform.reshape(batch, -1))

    def _pieces(self, frames: int) -> int:
        """Number of pieces into which the sound is cut before the transform."""
        return frames if self.settings.transform == "segment" else 1

    def _transform(self, waveform_BL: torch.Tensor) -> torch.Tensor:
        window = self._window.to(waveform_BL.device)
        return torch.stft(
            waveform_BL,
            self.geometry.n_fft,
            self.geometry.hop,
            window=window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )

    def _griffin_lim(self, mel_BJM: torch.Tensor, phase_BJF: torch.Tensor, length: int) -> torch.Tensor:
        """Fast Griffin-Lim (Perraudin, Balazs, Sondergaard 2013) towards mel bands: the sound, [B, length].

        A round: x <- t * gain(|t|) with t = c + momentum (c - c').
        c is the spectrum of the sound of x, and c' is c of the previous round. At first t has magnitude 1.
        """
        settings, n_fft, hop = self.settings, self.geometry.n_fft, self.geometry.hop
        window = self._window.to(mel_BJM.device)
        inside = slice(n_fft // 2, n_fft // 2 + length)
        weight_BL = _overlap_add(window.square().expand(1, mel_BJM.shape[1], n_fft), hop)[:, inside]

        def sound_of(spectrum_BJF: torch.Tensor) -> torch.Tensor:
            """Like torch.istft, in half the time."""
            pieces_BJN = torch.fft.irfft(spectrum_BJF, n=n_fft) * window
            return _overlap_add(pieces_BJN, hop)[:, inside] / weight_BL

        gain = self._gain_towards(mel_BJM)
        spectrum_BJF, previous_BJF = phase_BJF * gain(_magnitude(phase_BJF)), torch.zeros_like(phase_BJF)
        for _ in range(settings.griffin_lim_iterations):
            consistent_BJF = self._transform(sound_of(spectrum_BJF)).mT
            target_BJF = consistent_BJF + settings.griffin_lim_momentum * (consistent_BJF - previous_BJF)
            spectrum_BJF, previous_BJF = target_BJF * gain(_magnitude(target_BJF)), consistent_BJF
        return sound_of(spectrum_BJF)

    def _gain_towards(self, mel_BJM: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Returns the gain: a function of magnitude_BJF that returns a factor for each bin.

        The factors bring the mel bands of the magnitude to mel_BJM.

        multiplicative: M^T (m / M a) / M^T 1 with filters M, mel m, magnitude a (Richardson 1972, Lucy 1974).
        Each band needs a factor. A bin takes the mean of its bands' factors, weighted by their filters. So
        partials stay sharp. A bin that no filter covers is silent.
        pseudo_inverse: max(pinv(M) m, 0) / a. The target is the magnitude of least norm, the same in every
        round.
        """
        if self.settings.griffin_lim_magnitude == "pseudo_inverse":
            wanted_BJF = (mel_BJM @ self._inverse_FM.mT.to(mel_BJM.device)).clamp(min=0.0)
            return lambda magnitude_BJF: wanted_BJF / magnitude_BJF.clamp(min=TINY)
        filters_MF = self._filters_MF.to(mel_BJM.device)
        shares_MF = filters_MF / filters_MF.sum(dim=0).clamp(min=TINY)
        return lambda magnitude_BJF: (mel_BJM / (magnitude_BJF @ filters_MF.mT).clamp(min=TINY)) @ shares_MF


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Runs torch on one thread within the block.

    The last bits of mel images depend on the number of threads, but stored images must be reproducible.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _overlap_add(pieces_BJN: torch.Tensor, hop: int) -> torch.Tensor:
    """The sum of pieces of N samples, each `hop` samples after the previous one; zeros follow the last."""
    batch, columns, size = pieces_BJN.shape
    blocks = -(-size // hop)
    blocks_BJKH = torch.nn.functional.pad(pieces_BJN, (0, blocks * hop - size)).unflatten(2, (blocks, hop))
    sum_BJH = pieces_BJN.new_zeros(batch, columns + blocks - 1, hop)
    for block in range(blocks):
        sum_BJH[:, block : block + columns] += blocks_BJKH[:, :, block]
    return sum_BJH.flatten(1)


def _magnitude(spectrum: torch.Tensor) -> torch.Tensor:
    """|spectrum|. torch.abs handles extreme numbers and takes twice as long on a CPU."""
    return (spectrum.real.square() + spectrum.imag.square()).sqrt()


def _first_phase(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit complex numbers of uniform angle, a function of the seed and the shape alone.

    They are drawn on the CPU for every device.
    """
    angle = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (2 * torch.pi)
    return torch.polar(torch.ones_like(angle), angle)


def _limit(waveform_BL: torch.Tensor) -> torch.Tensor:
    """Brings clips whose peak exceeds 1 into [-1, 1]; other clips stay unchanged.

    Magnitudes above the knee are compressed by a tanh with slope 1 at the knee. Scaling the whole clip down
    was measured and is worse: one stray peak cost a loud clip up to 7.5 dB everywhere.
    """
    magnitude = waveform_BL.abs()
    room = 1 - LIMITER_KNEE
    bent = torch.where(
        magnitude > LIMITER_KNEE,
        LIMITER_KNEE + room * torch.tanh((magnitude - LIMITER_KNEE) / room),
        magnitude,
    )
    limited = torch.where(magnitude.amax(dim=1, keepdim=True) > 1, bent.clamp(max=1.0), magnitude)
    return limited * waveform_BL.sign()
