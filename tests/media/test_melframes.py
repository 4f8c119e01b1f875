"""Sound to mel images and back: closed forms, exact inverses, invariance to batch and cutting."""

import math

import pytest
import torch

from proav.config import Config
from proav.errors import UserError
from proav.media.melframes import MelFrames, _overlap_add
from proav.media.torchaudio import import_torchaudio, resample

RATE = 16000
MAGNITUDES = ("multiplicative", "pseudo_inverse")


def make(transform="whole", *, clip=None, **mel):
    return MelFrames(
        Config.model_validate(
            {"clip": clip or {}, "mel": {"transform": transform, **mel}, "mdsa": {"audio_input": "tiled"}}
        )
    )


def tone(hz, *, samples=25600, amplitude=0.5):
    return amplitude * torch.sin(2 * math.pi * hz * torch.arange(samples) / RATE)[None]


def chirp_and_clicks(samples=25600):
    time = torch.arange(samples) / RATE
    sound = 0.3 * torch.sin(2 * math.pi * (200 * time + 1200 * time**2))
    sound += 0.01 * torch.randn(
        samples, generator=torch.Generator().manual_seed(0)
    )  # no real recording is silent between its partials
    for start in range(2000, samples - 400, 5000):
        sound[start : start + 200] += (
            0.5 * torch.randn(200, generator=torch.Generator().manual_seed(start)) * torch.linspace(1, 0, 200)
        )
    return sound.clamp(-1, 1)[None]


def decibels(waveform, n_fft):
    transform = import_torchaudio().transforms.MelSpectrogram(
        RATE, n_fft=n_fft, hop_length=n_fft // 4, n_mels=40, power=1.0, norm="slaney", mel_scale="slaney"
    )
    return 20 * transform(waveform).clamp(min=1e-4).log10()


@pytest.mark.parametrize("hz", [250.0, 1000.0, 4000.0])
def test_a_tone_lights_its_band(hz):
    frames = make()
    mel = frames.encode(tone(hz))
    band = int(mel[0, 4:12].mean(dim=(0, 2)).argmax())
    centre = float(
        (frames._filters_MF[band] * torch.linspace(0, 8000, 257)).sum() / frames._filters_MF[band].sum()
    )
    assert abs(centre - hz) < max(40, 0.03 * hz)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("transform", ["whole", "segment"])
def test_silence_is_the_floor_and_stays_silent(transform, magnitude):
    frames = make(transform, griffin_lim_magnitude=magnitude, griffin_lim_iterations=8)
    mel = frames.encode(torch.zeros(1, 25600))
    assert torch.all(mel == -1)
    assert torch.all(frames.decode(mel, [0]) == 0)
    mel[:, 4:8] = 0.5
    sound = frames.decode(mel, [0])[0]
    assert torch.all(sound[: 4 * 1600 - 512] == 0) and torch.all(sound[8 * 1600 + 512 :] == 0)
    assert sound[4 * 1600 : 8 * 1600].square().mean() > 1e-4


def magnitudes_and_bands(frames, columns=7):
    """Random magnitudes [1, J, F], and the mel bands [1, J, M] of other random magnitudes."""
    shape = (2, 1, columns, frames._filters_MF.shape[1])
    magnitude, other = torch.rand(shape, generator=torch.Generator().manual_seed(0)).square() + 1e-4
    return magnitude, other @ frames._filters_MF.T


def test_one_round_reaches_bands_that_do_not_overlap():
    frames = make()
    filters = torch.zeros(5, 257)
    weights = 0.01 + torch.rand(5, 48, generator=torch.Generator().manual_seed(0))
    for band in range(5):
        filters[band, 50 * band + 2 : 50 * band + 50] = weights[band]
    frames._filters_MF = filters
    magnitude, mel = magnitudes_and_bands(frames)
    scaled = magnitude * frames._gain_towards(mel)(magnitude)
    torch.testing.assert_close(scaled @ filters.T, mel)
    assert torch.all(scaled[:, :, filters.sum(dim=0) == 0] == 0)
    ratio = scaled / magnitude  # within a band the shape stays
    torch.testing.assert_close(ratio[:, :, 60:99], ratio[:, :, 60:61].expand(-1, -1, 39))


def test_a_spectrum_that_has_the_bands_stays_and_others_come_nearer():
    frames = make(max_hz=6000.0)
    magnitude, mel = magnitudes_and_bands(frames)
    reached = frames._filters_MF.sum(dim=0) > 0
    own = magnitude @ frames._filters_MF.T
    unchanged = magnitude * frames._gain_towards(own)(magnitude)
    assert torch.all(unchanged[:, :, ~reached] == 0) and int((~reached).sum()) > 60
    torch.testing.assert_close(unchanged[:, :, reached], magnitude[:, :, reached])

    def divergence(bands):  # Richardson and Lucy's step never raises it
        return (mel * (mel / bands).log() - mel + bands).sum()

    gain, distances = frames._gain_towards(mel), [divergence(own)]
    for _ in range(30):
        magnitude = magnitude * gain(magnitude)
        distances.append(divergence(magnitude @ frames._filters_MF.T))
    assert all(after <= before * (1 + 1e-5) for before, after in zip(distances, distances[1:]))
    assert distances[-1] < 0.02 * distances[0]


@pytest.mark.parametrize("transform", ["whole", "segment"])
def test_multiplicative_magnitudes_lose_less_than_fixed_ones(transform):
    """The error is smaller for both transforms.

    Measured with six seeds at a window of 256 samples, multiplicative against fixed: whole 1.33 to 1.42 dB
    against 1.60 to 1.67, segment 2.20 to 2.44 against 2.64 to 2.83.
    """
    sound, losses = chirp_and_clicks(), {}
    for magnitude in MAGNITUDES:
        frames = make(transform, griffin_lim_magnitude=magnitude)
        restored = frames.decode(frames.encode(sound).expand(3, -1, -1, -1), [0, 1, 2])
        losses[magnitude] = (decibels(sound, 256) - decibels(restored, 256)).abs().mean(dim=(1, 2))
    assert losses["multiplicative"].max() < 0.95 * losses["pseudo_inverse"].min()


def test_noise_keeps_its_level():
    frames = make()
    sound = 0.2 * torch.randn(1, 25600, generator=torch.Generator().manual_seed(0))
    restored = frames.decode(frames.encode(sound), [0])
    assert abs(20 * math.log10(restored.norm() / sound.norm())) < 0.1  # fixed magnitudes: 0.53 dB too quiet


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("transform", ["whole", "segment"])
def test_any_image_gives_a_finite_sound(transform, magnitude):
    frames = make(transform, griffin_lim_magnitude=magnitude, griffin_lim_iterations=8)
    ends = torch.rand(16, 128, 16, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    one_band, one_column = torch.full((2, 16, 128, 16), -1.0)
    one_band[:, 100], one_column[8, :, 8] = 1.0, 1.0
    flat = [torch.full_like(ends, value) for value in (1.0, -0.9999)]
    images = torch.stack([ends, 3 * ends, one_band, one_column, *flat])
    sounds = frames.decode(images, list(range(6)))
    assert torch.isfinite(sounds).all() and sounds.abs().max() <= 1


def test_nothing_stays_on_another_device():
    """Tensors of the device `meta` have no values. Mixing them with tensors of the CPU is an error."""
    for magnitude in MAGNITUDES:
        frames = make(griffin_lim_magnitude=magnitude, griffin_lim_iterations=2)
        assert frames.decode(torch.zeros(1, 16, 128, 16, device="meta"), [0]).device.type == "meta"


@pytest.mark.parametrize(("size", "hop"), [(512, 100), (256, 64), (17, 5), (9, 4)])
def test_pieces_are_added_where_they_begin(size, hop):
    pieces = torch.randn(2, 6, size, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 5 * hop + size)
    for column in range(6):
        expected[:, column * hop : column * hop + size] += pieces[:, column]
    total = _overlap_add(pieces, hop)
    torch.testing.assert_close(total[:, : expected.shape[1]], expected)
    assert torch.all(total[:, expected.shape[1] :] == 0)


def test_levels_follow_the_formula():
    frames = make()
    quiet, loud = (frames.encode(tone(1000, amplitude=amplitude))[0, 8].max() for amplitude in (0.01, 0.1))
    # one decade of six, over a range of two
    torch.testing.assert_close(loud - quiet, torch.tensor(2 / 6), atol=1e-4, rtol=0)


def test_a_click_lands_in_its_frame_and_column():
    frames = make()
    for sample in (8000, 12345, 20050):
        sound = torch.zeros(1, 25600)
        sound[0, sample] = 1.0
        level = frames.encode(sound)[0].mean(dim=1).flatten()
        assert abs(int(level.argmax()) - sample / 100) <= 0.5


@pytest.mark.parametrize(("transform", "bounds"), [("whole", (1.6, 0.6)), ("segment", (2.8, 3.0))])
def test_round_trip_error(transform, bounds):
    """Measured: whole 1.38 and 0.37 dB at windows of 256 and 1024 samples, segment 2.35 and 2.25."""
    frames = make(transform)
    sound = chirp_and_clicks()
    restored = frames.decode(frames.encode(sound), [3])
    assert restored.shape == sound.shape and restored.abs().max() <= 1
    for n_fft, bound in zip((256, 1024), bounds, strict=True):
        assert (decibels(sound, n_fft) - decibels(restored, n_fft)).abs().mean() < bound


def test_the_round_trip_keeps_time():
    frames = make()
    sound = torch.zeros(1, 25600)
    sound[0, 12000:12040] = 0.8
    restored = frames.decode(frames.encode(sound), [0])[0]
    energy_time = (restored**2 * torch.arange(25600)).sum() / (restored**2).sum()
    assert abs(float(energy_time) - 12020) < 32  # 2 ms


@pytest.mark.parametrize("transform", ["whole", "segment"])
def test_decoding_does_not_depend_on_the_batch(transform):
    frames = make(transform, griffin_lim_iterations=8)
    sound = torch.cat([chirp_and_clicks(), tone(700), tone(90)])
    mel = frames.encode(sound)
    together = frames.decode(mel, [5, 6, 7])
    for index in range(3):
        torch.testing.assert_close(
            together[index], frames.decode(mel[index : index + 1], [5 + index])[0], atol=1e-5, rtol=0
        )
    assert not torch.allclose(frames.decode(mel[:1], [8])[0], together[0], atol=1e-3)


@pytest.mark.parametrize(("transform", "margin"), [("whole", (3, 2)), ("segment", (0, 0))])
def test_a_window_of_a_segment_has_the_segments_columns(transform, margin):
    frames = make(transform)
    sound = 0.3 * torch.randn(1, 60 * 1600, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    segment = frames.encode(sound)[0, 20:36].permute(1, 0, 2).flatten(1)
    window = frames.encode(sound[:, 20 * 1600 : 36 * 1600])[0].permute(1, 0, 2).flatten(1)
    first, last = margin
    torch.testing.assert_close(
        window[:, first : 256 - last], segment[:, first : 256 - last], atol=1e-4, rtol=0
    )
    if transform == "whole":  # the cost of the edges, for noise everywhere: column 0 loses half its window
        difference_decibels = (window - segment)[:, 0].abs().mean() * 60
        assert 1 < difference_decibels < 12


def test_whole_and_segment_agree_within_frames():
    sound = 0.3 * torch.randn(1, 25600, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    whole, segment = make("whole").encode(sound), make("segment").encode(sound)
    torch.testing.assert_close(whole[..., 3:-2], segment[..., 3:-2], atol=1e-4, rtol=0)
    assert (whole - segment)[0, 1:-1, :, 0].abs().mean() > 0.01  # they differ at frame borders


def test_any_whole_number_of_frames():
    frames = make(griffin_lim_iterations=2)
    assert frames.encode(torch.zeros(2, 1600)).shape == (2, 1, 128, 16)
    assert frames.decode(torch.rand(1, 100, 128, 16) - 1, [0]).shape == (1, 160000)
    with pytest.raises(UserError, match="multiple of 1600"):
        frames.encode(torch.zeros(1, 1601))


def test_loud_images_are_limited_and_quiet_ones_keep_their_level():
    frames = make(griffin_lim_iterations=4)
    loud = frames.decode(torch.ones(1, 16, 128, 16), [0])
    assert loud.abs().max() <= 1 and torch.isfinite(loud).all()
    quiet = tone(440, amplitude=0.2)
    restored = make().decode(make().encode(quiet), [0])
    assert abs(float(restored.square().mean().sqrt() / quiet.square().mean().sqrt()) - 1) < 0.15


def test_resample_keeps_a_tone():
    time = torch.arange(44100) / 44100
    resampled = resample(torch.sin(2 * math.pi * 440 * time)[None], 44100, RATE)
    assert resampled.shape == (1, RATE)
    torch.testing.assert_close(
        resampled[:, 200:-200], tone(440, samples=RATE, amplitude=1.0)[:, 200:-200], atol=5e-3, rtol=0
    )
