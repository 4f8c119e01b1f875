"""Mel images: every value becomes a block of pixels, and the block becomes the value again."""

import pytest
import torch

from proav.config.reading import config_from_dict
from proav.geometry import stream_geometries
from proav.models.mdsa.streams import tile_mel, untile_mel


@pytest.mark.parametrize(
    ("clip", "mel", "mel_shape", "image_shape"),
    [
        ({}, {}, (16, 128, 16), (256, 256)),
        ({"height": 128, "width": 128}, {}, (16, 128, 16), (128, 128)),
        ({"height": 96, "width": 160}, {"num_bins": 32, "hop": 80, "n_fft": 256}, (16, 32, 20), (96, 160)),
        ({"fps": 4, "height": 192, "width": 96}, {"num_bins": 64, "hop": 125}, (16, 64, 32), (192, 96)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_untile_undoes_tile(clip, mel, mel_shape, image_shape, channels):
    mdsa = {"audio_input": "tiled", "audio_channels": channels}
    config = config_from_dict({"clip": clip, "mel": mel, "mdsa": mdsa})
    grid = torch.rand(2, *mel_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = tile_mel(grid, stream_geometries(config)["audio"])
    assert image.shape == (2, channels, 16, *image_shape)
    torch.testing.assert_close(untile_mel(image, *mel_shape[1:]), grid)


def test_untile_is_the_mean_of_a_block():
    image = torch.randn(1, 1, 16, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = image[
        0, 0, 3, 254:256, 16:32
    ].mean()  # the lowest band is the bottom block, column 1 the second
    torch.testing.assert_close(untile_mel(image, 128, 16)[0, 3, 0, 1], expected, atol=1e-6, rtol=0)
