import torch

from proav.checkpoint import load_checkpoint
from proav.export import main
from proav.pipeline import SoundingVideoPipeline
from tests.tiny import save_tiny_mdsa, save_tiny_stdit, tiny_config


def test_an_export_makes_the_same_clips_from_half_the_bytes(tmp_path):
    whole = load_checkpoint(save_tiny_stdit(str(tmp_path / "whole"), tiny_config()))
    assert main([whole.path, str(tmp_path / "small")]) == 0
    small = load_checkpoint(str(tmp_path / "small" / "latest"), kind="stdit")
    assert set(small.files) == {"ema.safetensors", "mdsa.safetensors"}
    assert small.labels == whole.labels and small.latent_std == whole.latent_std and small.config == whole.config
    for name in ("ema", "mdsa"):
        size = sum(value.numel() for value in whole.weights(name).values())
        assert small.files[f"{name}.safetensors"]["bytes"] < 2.5 * size + 20_000
        halves = small.weights(name)
        assert all(torch.equal(halves[key], value.half()) for key, value in whole.weights(name).items())
    clips = [SoundingVideoPipeline.from_checkpoint(each.path)(seed=1, steps=3)[0] for each in (whole, small)]
    difference = clips[0].video.astype(int) - clips[1].video.astype(int)
    assert abs(difference).mean() < 2


def test_mistakes_are_told_in_a_line(tmp_path, capsys):
    mdsa = save_tiny_mdsa(str(tmp_path / "mdsa"), tiny_config())
    assert main([mdsa, str(tmp_path / "small")]) == 2
    assert main([str(tmp_path / "none"), str(tmp_path / "small")]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 2 and not (tmp_path / "small").exists()
