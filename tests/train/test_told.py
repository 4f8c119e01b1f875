"""From stored vectors through training to a checkpoint that makes clips by them, on one tiny run."""

import json

import numpy as np
import pytest
import torch

from proav import storage
from proav.data.prepare.vectors import store_vectors
from proav.data.store.shards import SegmentStore, manifest_hash
from proav.errors import CheckpointError, UserError
from proav.evaluate.losses import evaluate_stdit
from proav.generation.pipeline import SoundingVideoPipeline
from proav.latents.encode import ShardEncoder
from proav.runs.checkpoint import load_checkpoint
from proav.train.worker import train_worker
from tests.tiny import LABELS, save_tiny_mdsa, tiny_config
from tests.train.tiny_run import write_segments

CPU = torch.device("cpu")
VECTORS = "data.vectors={face: tests.data.prepare.test_vectors:numbers}"
WORDS = ("train.engine=torch", "evaluate.split=train", VECTORS)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Segments with vectors and labels, of which one segment has two, and their latents."""
    folder = str(tmp_path_factory.mktemp("run"))
    config = tiny_config(f"run_dir={folder}", *WORDS)
    write_segments(config)
    store_vectors(config, f"{folder}/data")
    mdsa = load_checkpoint(save_tiny_mdsa(f"{folder}/mdsa/checkpoints", config), kind="mdsa")
    store, encoder = SegmentStore(f"{folder}/data"), ShardEncoder(config, mdsa.path, {})
    shards = [shard["name"] for shard in store.manifest["shards"]]
    assert [encoder({"shard": name})["error"] for name in shards] == [""] * len(shards)
    channels = config.mdsa.latent_channels
    stats = {
        "mdsa_checkpoint": mdsa.hash, "data": manifest_hash(store.manifest), "labels": list(LABELS),
        "mean": np.zeros((6, channels)).tolist(), "std": np.full((6, channels), 0.5).tolist(),
    }  # fmt: skip
    storage.write_text(f"{folder}/latents/stats.json", json.dumps(stats))
    return folder


def test_a_model_is_trained_on_stored_vectors_measured_and_samples_by_them(run_dir):
    config = tiny_config(f"run_dir={run_dir}", *WORDS, "stdit.vectors={face: 3}", "stdit.labels=false")
    assert train_worker(config, "stdit", device=CPU)["clips"] == 16
    checkpoint = load_checkpoint(f"{run_dir}/stdit/checkpoints", kind="stdit")
    assert checkpoint.labels == () and checkpoint.config.stdit.vectors == {"face": 3}
    assert checkpoint.weights("model")["conditioning.vectors.of_face.weight"].any()
    assert np.isfinite(evaluate_stdit(config, checkpoint.path)["loss"])
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint.path, weights="model")
    told, plain = (pipeline(vectors=vectors, steps=1)[0] for vectors in ({"face": [9, 0, 0]}, {}))
    assert told.video.shape == plain.video.shape
    with pytest.raises(CheckpointError, match="stdit.labels=False"):
        train_worker(
            tiny_config(f"run_dir={run_dir}", *WORDS, "stdit.vectors={face: 3}"), "stdit", device=CPU
        )


def test_vectors_that_are_not_stored_or_do_not_fit_end_training_before_it_begins(run_dir):
    for vectors, said in (
        ("{voice: 3}", "stores no such vectors"),
        ("{face: 4}", "need stdit.vectors={face: 3}"),
    ):
        config = tiny_config(f"run_dir={run_dir}", *WORDS, f"stdit.vectors={vectors}")
        with pytest.raises(UserError, match=said):
            train_worker(config, "stdit", device=CPU)
