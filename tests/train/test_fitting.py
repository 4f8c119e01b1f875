"""MDSA's linear planes at the start of training: the same clips and weights with any engine and workers."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from proav.data.feeds.feed import ClipFeed
from proav.errors import UserError
from proav.generation.coder import pixels_to_unit
from proav.models.mdsa import MDSA
from proav.runs.checkpoint import load_checkpoint
from proav.train.fitting import FirstClips, fit_linear_planes, fit_on_worker_0
from proav.train.worker import plan_stage, train_worker
from tests.tiny import tiny_config
from tests.train.tiny_run import write_segments
from tests.train.toy import on_workers, shard_everything

CPU = torch.device("cpu")
FIT_CLIPS = 21
"""More than an epoch of the tiny data set, and not a whole number of batches."""
SWITCHED = (
    "mdsa.plane_channels.video=[6,4,4]",
    "mdsa.plane_channels.audio=[2,2,6]",
    "mdsa.linear_planes.bases.video=2",
    "mdsa.linear_planes.bases.audio=3",
    "mdsa.linear_planes.switched_channels=3",
)
STAND_STILL = "mdsa.train.learning_rate=1e-30"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny_config(
        f"run_dir={tmp_path_factory.mktemp('run')}",
        "train.engine=torch",
        f"mdsa.linear_planes.fit_clips={FIT_CLIPS}",
        "mdsa.train.augment_turns=true",
        "mdsa.train.augment_colour=0.2",
        "mdsa.train.augment_pitch=2",
        *SWITCHED,
    )
    write_segments(config)
    return config


def linear_weights(config):
    """The weights that one process without a group fits; they do not depend on the random weights."""
    torch.manual_seed(99)
    model = MDSA(config)
    fit_linear_planes(model, plan_stage(config, "mdsa").feed, FIT_CLIPS)
    return {name: weight.clone() for name, weight in model.state_dict().items() if name.startswith("linear.")}


def assert_equal(first, second):
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_fit_sees_what_training_sees_first(config):
    feed = plan_stage(config, "mdsa").feed
    clips = FirstClips(feed, FIT_CLIPS)
    assert feed.num_slots < FIT_CLIPS and len(clips) == 3
    batches = list(clips)
    assert [len(video) for video, _ in batches] == [8, 8, 5]
    trained_on = [feed.batch(step) for step in range(6)]  # of 4 clips each
    video, mel = (torch.cat([batch[name] for batch in trained_on])[:FIT_CLIPS] for name in ("video", "mel"))
    assert torch.equal(torch.cat([pair[0] for pair in batches]), pixels_to_unit(video))
    assert torch.equal(torch.cat([pair[1] for pair in batches]), mel)


def test_clips_are_made_when_they_are_asked_for_and_each_once_a_pass(config, monkeypatch):
    seen, at = [], ClipFeed.at
    monkeypatch.setattr(ClipFeed, "at", lambda feed, places: seen.append(places.tolist()) or at(feed, places))
    feed = plan_stage(config, "mdsa").feed
    clips = FirstClips(feed, FIT_CLIPS)
    assert not seen
    fit_linear_planes(MDSA(config), feed, FIT_CLIPS)
    assert np.concatenate(seen).tolist() == 2 * list(range(FIT_CLIPS)) and len(seen) == 2 * len(clips)


def test_the_fit_depends_on_seed_and_data_alone(config):
    expected = linear_weights(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_equal(linear_weights(config), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    other = linear_weights(config.model_copy(update={"seed": 1}))
    assert not torch.equal(other["linear.video.mean.value"], expected["linear.video.mean.value"])


def workers_agree(config, folder):
    torch.manual_seed(dist.get_rank())
    model, feed = MDSA(config), plan_stage(config, "mdsa").feed
    found = fit_on_worker_0(model, lambda model: fit_linear_planes(model, feed, FIT_CLIPS), CPU)
    assert found.init_hash is None and found.line.startswith(f"linear planes fitted on {FIT_CLIPS} clips in ")
    torch.save(model.state_dict(), f"{folder}/{dist.get_rank()}.pt")
    with pytest.raises(UserError, match="no clips"):
        fit_on_worker_0(model, no_clips, CPU)


def no_clips(model):
    assert dist.get_rank() == 0
    raise UserError("no clips")


def test_every_worker_has_the_weights_that_one_alone_fits(config, tmp_path):
    on_workers(2, workers_agree, config, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_equal(first, second)
    expected = linear_weights(config)
    assert_equal({name: first[name] for name in expected}, expected)


def train_with(engines, data_folder, folder):
    shard_everything()
    for engine in engines:
        config = engine_config(engine, data_folder, f"{folder}/{engine}")
        train_worker(config, "mdsa", device=CPU, rank=dist.get_rank(), world=dist.get_world_size())


def engine_config(engine, data_folder, folder):
    zero = ("train.engine=deepspeed", f"train.zero_stage={engine}")
    words = zero if engine else ("train.engine=torch",)
    places = (f"run_dir={folder}", f"data.prepared={data_folder}")
    fit = f"mdsa.linear_planes.fit_clips={FIT_CLIPS}"
    short = ("train.num_clips=4", "train.num_workers=[1,2]")
    return tiny_config(*places, *words, fit, *SWITCHED, STAND_STILL, *short)


def test_every_engine_trains_on_from_the_fitted_weights(config, tmp_path):
    """At a rate that moves no weight, the checkpoint holds what was fitted."""
    engines = (0, 1, 3)
    expected = linear_weights(engine_config(0, config.data_folder, str(tmp_path)))
    on_workers(2, train_with, engines, config.data_folder, str(tmp_path))
    for engine in engines:
        checkpoint = load_checkpoint(f"{tmp_path}/{engine}/mdsa/checkpoints", kind="mdsa")
        for part in ("model", "ema"):
            weights = checkpoint.weights(part)
            for name, weight in expected.items():
                torch.testing.assert_close(weights[name], weight, atol=1e-25, rtol=0)


def test_while_the_linear_path_learns_alone_nothing_else_moves(config, tmp_path):
    words = (f"run_dir={tmp_path}", f"data.prepared={config.data_folder}", "train.engine=torch")
    alone = ("mdsa.linear_planes.alone_clips=8", "train.checkpoint_every_clips=4", "train.keep_checkpoints=9")
    train_worker(tiny_config(*words, *alone, "train.num_clips=12"), "mdsa", device=CPU)
    folder = f"{tmp_path}/mdsa/checkpoints/clips-"
    first, second, third = (load_checkpoint(f"{folder}{clips:012d}").weights("model") for clips in (4, 8, 12))
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved and all(name.startswith("linear.") for name in moved)
    assert any(not torch.equal(second[name], third[name]) for name in first if not name.startswith("linear."))


@pytest.mark.parametrize(("alone", "told"), [(4, 1), (3, 0)])
def test_training_that_ends_before_the_network_begins_says_so(config, tmp_path, capfd, alone, told):
    words = (f"run_dir={tmp_path}", f"data.prepared={config.data_folder}", "train.engine=torch")
    asked = ("train.num_clips=4", f"mdsa.linear_planes.alone_clips={alone}")
    train_worker(tiny_config(*words, *asked), "mdsa", device=CPU)
    assert capfd.readouterr().err.count("the network stays untrained: mdsa.linear_planes") == told


def test_a_run_says_it_once_and_does_not_fit_again_when_resumed(config, tmp_path, capfd):
    words = (f"run_dir={tmp_path}", f"data.prepared={config.data_folder}", "train.engine=torch")
    for clips, times in ((4, 1), (8, 0)):
        train_worker(tiny_config(*words, f"train.num_clips={clips}"), "mdsa", device=CPU)
        assert capfd.readouterr().err.count("linear planes fitted on") == times
    off = tiny_config(words[1], words[2], f"run_dir={tmp_path}/off", "mdsa.linear_planes.enabled=false")
    train_worker(off, "mdsa", device=CPU)
    assert "fitted" not in capfd.readouterr().err
