from pathlib import Path

import torch

from proav.config.reading import load_config
from proav.export import main
from proav.generation.pipeline import SoundingVideoPipeline
from proav.runs.checkpoint import load_checkpoint
from tests.tiny import save_tiny_mdsa, save_tiny_stdit, tiny_config


def test_an_export_makes_the_same_clips_from_half_the_bytes(tmp_path):
    whole = load_checkpoint(
        save_tiny_stdit(str(tmp_path / "whole"), tiny_config("evaluate.num_workers=null"))
    )
    assert main([whole.path, str(tmp_path / "small")]) == 0
    small = load_checkpoint(str(tmp_path / "small" / "latest"), kind="stdit")
    assert set(small.files) == {"ema.safetensors", "mdsa.safetensors"}
    assert (
        small.labels == whole.labels and small.latent_std == whole.latent_std and small.config == whole.config
    )
    for name in ("ema", "mdsa"):
        size = sum(value.numel() for value in whole.weights(name).values())
        assert small.files[f"{name}.safetensors"]["bytes"] < 2.5 * size + 20_000
        halves = small.weights(name)
        assert all(torch.equal(halves[key], value.half()) for key, value in whole.weights(name).items())
    clips = [SoundingVideoPipeline.from_checkpoint(each.path)(seed=1, steps=3)[0] for each in (whole, small)]
    difference = clips[0].video.astype(int) - clips[1].video.astype(int)
    assert abs(difference).mean() < 2


def test_no_place_of_the_training_machine_goes_along(tmp_path):
    there = tmp_path / "somewhere"
    places = (f"run_dir={there}", f"data.sources=[{there}]", f"data.prepared={there}")
    more = [f"{key}={there}" for key in ("mdsa.loss.perceptual_weights", "evaluate.weights", "evaluate.fake")]
    more.append(f"generate.checkpoint={there}")
    whole = save_tiny_stdit(str(tmp_path / "whole"), tiny_config(*places, *more))
    assert main([whole, str(tmp_path / "small")]) == 0
    index = (tmp_path / "small" / "clips-000000000008" / "checkpoint.json").read_text()
    assert "somewhere" not in index and '"fps": 5' in index


def test_the_showcase_is_small_fits_its_configuration_and_makes_clips():
    folder = Path(__file__).parents[1] / "examples/showcase"
    checkpoint = load_checkpoint(str(folder / "latest"), kind="stdit")
    assert sum(file.stat().st_size for file in Path(checkpoint.path).iterdir()) <= 16e6
    config = load_config(str(folder / "config.yaml"))
    assert checkpoint.clips == config.stdit.train.num_clips
    for section in ("clip", "mel", "mdsa", "stdit", "diffusion"):
        assert getattr(checkpoint.config, section) == getattr(config, section), section
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint.path)
    (clip,) = pipeline(label="nature", steps=2)
    assert clip.video.shape == (8, 64, 64, 3) and clip.video.std() > 5 and abs(clip.audio).max() > 0


def test_mistakes_are_reported_in_a_line(tmp_path, capsys):
    mdsa = save_tiny_mdsa(str(tmp_path / "mdsa"), tiny_config())
    assert main([mdsa, str(tmp_path / "small")]) == 2
    assert main([str(tmp_path / "none"), str(tmp_path / "small")]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 2 and not (tmp_path / "small").exists()
