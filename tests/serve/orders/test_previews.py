"""Stills of a clip have the sizes that the page expects."""

import io

import numpy as np
from PIL import Image

from proav.media.container import Clip, encode_clip
from proav.serve.orders.previews import preview
from tests.tiny import tiny_config

CONFIG = tiny_config()
SHADES = np.array([0, 80, 160, 240], np.uint8)


def stills(variant):
    video = np.broadcast_to(SHADES[:, None, None, None], (4, 32, 32, 3)).copy()
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(12_800) / 16_000)).astype(np.float32)
    tone[:6400] = 0
    return Image.open(io.BytesIO(preview(encode_clip(Clip(video, tone, 5, 16_000)), variant, CONFIG)))


def test_the_thumbnail_is_the_middle_frame():
    image = stills("thumbnail")
    assert image.format == "JPEG" and image.size == (32, 32) and abs(np.asarray(image).mean() - 160) < 6


def test_the_sheet_shows_all_frames_in_reading_order():
    image = stills("spritesheet")
    assert image.format == "JPEG" and image.size == (64, 64)
    corners = np.asarray(image)[[[16, 16], [48, 48]], [[16, 48], [16, 48]]].mean(-1).ravel()
    assert np.abs(corners - SHADES).max() < 8


def test_a_clip_of_an_earlier_model_keeps_its_size_and_frames():
    video = np.zeros((6, 48, 64, 3), np.uint8)
    video[3] = 200
    clip = encode_clip(Clip(video, np.zeros(6 * 800, np.float32), 10, 8_000))
    thumbnail, sheet = (
        Image.open(io.BytesIO(preview(clip, one, CONFIG))) for one in ("thumbnail", "spritesheet")
    )
    assert thumbnail.size == (64, 48) and np.asarray(thumbnail).min() > 180
    assert sheet.size == (3 * 64, 2 * 48)


def test_the_spectrogram_has_time_across_and_pitch_up():
    image = stills("spectrogram")
    assert image.format == "PNG" and image.size == (64, 32)  # 4 frames of 16 columns, 32 bands
    light = np.asarray(image).astype(int).sum(-1)
    assert light[:, 40:].max() > 3 * max(1, light[:, :24].max())  # silence, then a tone
    assert light[16:, 40:].max() == light.max()  # 1 kHz lies in the lower half of the mel bands
