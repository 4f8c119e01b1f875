"""Feature networks that the user brings: a small package and a file of weights.

The fixture `install` writes the metadata of an installed package, so that it is found like any other.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from proav.errors import UserError
from proav.metrics.networks import NETWORKS, load_network, weights_file
from proav.metrics.networks.given import class_names

CODE = (
    """
import torch

def build(tensors, device):
    weight = tensors["projection"].to(device)  # [441, 1024]
    return lambda audio: audio.unfold(1, 441, 441) @ weight

def narrow(tensors, device):
    return lambda audio: torch.zeros(len(audio), 1, 512)

def endless(tensors, device):
    return lambda audio: torch.full((len(audio), 1, 1024), torch.inf)

def compared(tensors, device):
    return lambda video, audio: torch.stack([video.float().mean((1, 2, 3, 4)), audio.mean(1)], 1)"""
    """[:, None].repeat(1, 1, 11)[..., :21]

def classes(tensors, device):
    return lambda video: video.float().mean((1, 2, 3))[:, None]

def strict(tensors, device):
    return torch.nn.Linear(441, 1024).load_state_dict(tensors)

def picky(tensors, device):
    raise ValueError("no projection")

def listed(tensors, device):
    return lambda audio: audio.tolist()
"""
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(package, entry, version) puts a package with the code above on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(package: str, entry: str, version: str = "1.0", network: str = "audioclip") -> None:
        (tmp_path / f"{package}_code.py").write_text(CODE)
        information = tmp_path / f"{package}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (information / "entry_points.txt").write_text(f"[proav.feature_networks]\n{network} = {entry}\n")

    return put


@pytest.fixture
def weights(tmp_path):
    save_file(
        {"projection": torch.randn(441, 1024, generator=torch.Generator().manual_seed(0))},
        tmp_path / "audioclip.safetensors",
    )
    return weights_file("audioclip", str(tmp_path))


def test_an_installed_package_gives_the_network(install, weights):
    install("tiny_one", "tiny_one_code:build", version="2.3")
    network, sound = load_network("audioclip", weights), torch.rand(2, 44_100)
    features = network(sound)
    assert features.shape == (2, 100, NETWORKS["audioclip"].dimension) and network.card.metrics == ("FAD",)
    torch.testing.assert_close(network(sound[1:]), features[1:])
    checksum, package = network.weights_sha256.split(", ")
    assert len(checksum) == 64 and package == "tiny_one 2.3"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "narrow",
            r"audioclip of tiny_two 1.0 gave float32 \[2, 1, 512\]; expected float32 \[2, windows, 1024\]",
        ),
        ("endless", "not finite"),
        ("listed", "gave list"),
    ],
)
def test_features_are_held_to_the_card(function, message, install, weights):
    install("tiny_two", f"tiny_two_code:{function}")
    with pytest.raises(UserError, match=message):
        load_network("audioclip", weights)(torch.rand(2, 44_100))


def test_what_is_missing_is_named(install, weights):
    with pytest.raises(
        UserError,
        match="no installed package has code for the network audioclip; expected an entry point audioclip",
    ):
        load_network("audioclip", weights)
    install("tiny_three", "tiny_three_code:absent")
    with pytest.raises(
        UserError, match="tiny_three 1.0 declares tiny_three_code:absent for the network audioclip, but"
    ):
        load_network("audioclip", weights)
    with pytest.raises(UserError, match="needs its weights, evaluate.weights=DIR with audioclip.safetensors"):
        load_network("audioclip")
    install("tiny_four", "tiny_four_code:build")
    with pytest.raises(UserError, match="several packages.*tiny_four, tiny_three; keep one"):
        load_network("audioclip", weights)


def test_only_safetensors_reach_the_package(install, tmp_path):
    install("tiny_five", "tiny_five_code:build")
    torch.save({"projection": torch.zeros(441, 1024)}, tmp_path / "audioclip.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_network("audioclip", str(tmp_path / "audioclip.safetensors"))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("build", "KeyError: 'projection'"),
        ("strict", r"RuntimeError: Error\(s\) in loading state_dict for Linear: Missing key\(s\)"),
        ("picky", "ValueError: no projection"),
    ],
)
def test_a_file_with_other_tensors_is_named(function, said, install, tmp_path):
    install("tiny_eight", f"tiny_eight_code:{function}")
    path = str(tmp_path / "audioclip.safetensors")
    save_file({"none": torch.zeros(1)}, path)
    message = f"tiny_eight 1.0 cannot build the network audioclip from {path}: {said}"
    with pytest.raises(UserError, match=message) as refused:
        load_network("audioclip", path)
    assert "write evaluate.weights=DIR with audioclip.safetensors of those" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_of_both_is_called_with_both(install, tmp_path):
    install("tiny_six", "tiny_six_code:compared", network="synchformer")
    save_file({"none": torch.zeros(1)}, tmp_path / "synchformer.safetensors")
    network = load_network("synchformer", str(tmp_path / "synchformer.safetensors"))
    features = network(torch.full((2, 4, 8, 8, 3), 7, dtype=torch.uint8), torch.rand(2, 16_000))
    assert features.shape == (2, 1, 21) and (features[..., 0] == 7).all()


def test_a_classifier_has_as_many_features_as_its_file_names_classes(install, tmp_path):
    install("tiny_seven", "tiny_seven_code:classes", network="classifier")
    path, video = tmp_path / "classifier.safetensors", torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)
    for names, message in (
        (["dog", "cat"], r"expected float32 \[2, windows, 2\]"),
        ("dog", "names no classes"),
        (None, "names no classes"),
    ):
        save_file({"none": torch.zeros(1)}, path, metadata={"classes": json.dumps(names)} if names else None)
        with pytest.raises(UserError, match=message):
            load_network("classifier", str(path))(video)
    save_file({"none": torch.zeros(1)}, path, metadata={"classes": json.dumps(["dog", "cat", "rain"])})
    network = load_network("classifier", str(path))
    assert network(video).shape == (2, 1, 3) and class_names(NETWORKS["classifier"], str(path)) == (
        "dog",
        "cat",
        "rain",
    )
