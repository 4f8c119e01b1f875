"""Models that start from trained ones: the same function where nothing differs, and resized, or refused."""

import shutil

import pytest
import torch
import torch.distributed as dist

from proav.errors import CheckpointError
from proav.models.stdit import STDiT
from proav.models.stdit.embeddings import TokenPositions
from proav.runs.checkpoint import load_checkpoint
from proav.train.start import LABEL_TABLE, kept_spacing, open_start, start_stdit
from proav.train.worker import train_worker
from tests.tiny import LABELS, save_tiny_mdsa, save_tiny_stdit, tiny_config
from tests.train.test_worker import CPU, TORCH, prepare
from tests.train.toy import on_workers

STILL = ("mdsa.train.learning_rate=1e-30", "stdit.train.learning_rate=1e-30", "train.num_clips=4")
LARGER = ("clip.height=64", "clip.width=64", "mdsa.plane_size=8", "stdit.position_spacing=[0.5,0.5]")


def weights_of(folder, stage, name="model"):
    return load_checkpoint(f"{folder}/{stage}/checkpoints").weights(name)


def assert_same(first, second, *, but=()):
    assert first.keys() - but == second.keys() - but
    for name in first.keys() - but:
        torch.testing.assert_close(first[name], second[name], atol=1e-20, rtol=0, msg=name)


def test_an_autoencoder_starts_where_another_ended(tmp_path, capfd):
    trained = save_tiny_mdsa(f"{tmp_path}/trained", tiny_config())
    words = (*TORCH, *STILL, f"mdsa.init_from={trained}", "mdsa.linear_planes.alone_clips=8")
    train_worker(prepare(f"{tmp_path}/run", "mdsa", *words), "mdsa", device=CPU)
    told = capfd.readouterr().err
    assert "weights from" in told and "8 clips" in told and "fitted" not in told and "untrained" not in told
    assert_same(weights_of(f"{tmp_path}/run", "mdsa"), load_checkpoint(trained).weights("ema"))


def test_an_autoencoder_also_starts_from_the_one_that_a_generator_carries(tmp_path):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    words = (*TORCH, *STILL, f"mdsa.init_from={trained}")
    train_worker(prepare(f"{tmp_path}/run", "mdsa", *words), "mdsa", device=CPU)
    assert_same(weights_of(f"{tmp_path}/run", "mdsa"), load_checkpoint(trained).weights("mdsa"))


def test_a_generator_starts_where_another_ended_and_the_other_may_go(tmp_path, capfd):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    expected = load_checkpoint(trained).weights("ema")
    words = (*TORCH, *STILL[1:], f"stdit.init_from={trained}")
    config = prepare(f"{tmp_path}/run", "stdit", *words)
    train_worker(config, "stdit", device=CPU)
    assert "weights from" in capfd.readouterr().err
    assert_same(weights_of(f"{tmp_path}/run", "stdit"), expected)
    shutil.rmtree(f"{tmp_path}/trained")  # a run that has begun does not read it again
    more = tiny_config(f"run_dir={tmp_path}/run", *words, "train.num_clips=8")
    assert train_worker(more, "stdit", device=CPU)["clips"] == 8
    assert "continuing from" in capfd.readouterr().err


def test_clips_of_another_size(tmp_path, capfd):
    """Both stages: frames twice as large, planes with twice the cells."""
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    words = (*TORCH, *STILL, *LARGER, f"mdsa.init_from={trained}", f"stdit.init_from={trained}")
    train_worker(prepare(f"{tmp_path}/mdsa", "mdsa", *words), "mdsa", device=CPU)
    assert "resized to this run's clips" in capfd.readouterr().err
    train_worker(prepare(f"{tmp_path}/stdit", "stdit", *words), "stdit", device=CPU)
    assert_same(weights_of(f"{tmp_path}/stdit", "stdit"), load_checkpoint(trained).weights("ema"))


def test_labels_keep_their_weights_by_name_and_vectors_begin_at_nothing(tmp_path):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    config = tiny_config(f"stdit.init_from={trained}", "stdit.vectors={caption: 5, words: [3, 6]}")
    checkpoint, labels = open_start(config, "stdit"), ("wind", *reversed(LABELS))
    model, expected = STDiT(config, len(labels)), checkpoint.weights("ema")
    told = start_stdit(model, checkpoint, labels)
    assert "new labels: wind; new vectors: caption, words" in told and "left behind" not in told
    made = model.state_dict()
    rain, speech, null = expected[LABEL_TABLE]
    assert torch.equal(made[LABEL_TABLE], torch.stack([null, speech, rain, null]))
    new = made.keys() - expected.keys()
    assert any("of_words" in name for name in new) and any(".cross." in name for name in new)
    assert_same(made, expected, but={*new, LABEL_TABLE})
    silent = [name for name in new if name.startswith("conditioning.") or ".cross.out" in name]
    assert len(silent) == 2 and all((made[name] == 0).all() for name in silent)


def test_labels_and_vectors_can_be_left_behind(tmp_path):
    before = tiny_config("stdit.vectors={caption: 5, words: [3, 6]}")
    trained = save_tiny_stdit(f"{tmp_path}/trained", before)
    config = tiny_config(f"stdit.init_from={trained}", "stdit.labels=false", "stdit.vectors={caption: 5}")
    checkpoint = open_start(config, "stdit")
    model, expected = STDiT(config, 0), checkpoint.weights("ema")
    told = start_stdit(model, checkpoint, ())
    assert "labels left behind: rain, speech; vectors left behind: words" in told and "new" not in told
    assert torch.equal(model.state_dict()[LABEL_TABLE], expected[LABEL_TABLE][2:])


def start_on_two_workers(config):
    train_worker(config, "mdsa", device=CPU, rank=dist.get_rank(), world=2)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_all_workers_start_alike_with_any_sharding(tmp_path, zero_stage):
    trained = save_tiny_mdsa(f"{tmp_path}/trained", tiny_config())
    sharding = ("train.engine=deepspeed", f"train.zero_stage={zero_stage}", "train.num_workers=2")
    config = prepare(f"{tmp_path}/run", "mdsa", *sharding, *STILL, f"mdsa.init_from={trained}")
    on_workers(2, start_on_two_workers, config)
    assert_same(weights_of(f"{tmp_path}/run", "mdsa"), load_checkpoint(trained).weights("ema"))


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        ("mdsa", ["mdsa.width=24"], "trained with mdsa.width=16; this run has mdsa.width=24"),
        ("mdsa", ["mdsa.refiner.enabled=false"], "mdsa.refiner.enabled=True"),
        ("stdit", ["stdit.depth=2"], "trained with stdit.depth=1; this run has stdit.depth=2"),
        ("stdit", ["diffusion.objective=ddpm"], "objective=flow; this run has diffusion.objective=ddpm"),
        ("stdit", ["mdsa.latent_channels=8"], r"planes with channels \[4, 4, 4, 4, 4, 4\], this run \[8, 8"),
        ("stdit", LARGER[:3], r"stdit.position_spacing=\[1,1\] .* write stdit.position_spacing=\[0.5,0.5\]"),
        ("stdit", ["clip.fps=10"], r"write stdit.position_spacing=\[1,0.5\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_write(tmp_path, stage, words, told):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    with pytest.raises(CheckpointError, match=told):
        open_start(tiny_config(*words, f"{stage}.init_from={trained}"), stage)


def test_vectors_of_another_width_are_refused(tmp_path):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config("stdit.vectors={caption: 5}"))
    other = tiny_config("stdit.vectors={caption: 6}", f"stdit.init_from={trained}")
    with pytest.raises(CheckpointError, match=r"takes caption as \[5\], this run as \[6\]"):
        open_start(other, "stdit")


def test_a_start_that_is_not_there_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        open_start(tiny_config(f"mdsa.init_from={tmp_path}/none"), "mdsa")
    mdsa = save_tiny_mdsa(str(tmp_path), tiny_config())
    with pytest.raises(CheckpointError, match="a checkpoint of mdsa, expected one of stdit"):
        open_start(tiny_config(f"stdit.init_from={mdsa}"), "stdit")


def test_places_and_seconds_keep_their_coordinates():
    """The middle of two cells of the finer planes is the cell of the coarser ones; the same for times."""
    before = tiny_config("stdit.patch_size=1")
    after = tiny_config("stdit.patch_size=1", "clip.height=64", "clip.width=64", "mdsa.plane_size=8",
                        "clip.num_frames=8")  # fmt: skip
    spacing = kept_spacing(after, before)
    assert spacing == (0.5, 1.0)  # twice the cells in one picture; twice the cells in twice the time
    coarse, fine = (
        TokenPositions(6 * [side], 96, spacing=apart).axes.view(6, side, side, 96)
        for side, apart in ((4, (1.0, 1.0)), (8, spacing))
    )
    slow = slice(8, 16)  # waves of T so long that the middle of two is their mean
    for place in range(4):
        torch.testing.assert_close(fine[1, place, 0, :32], coarse[1, place, 0, :32])  # T: the same seconds
        middle = fine[0, 2 * place : 2 * place + 2, 0, 32:64].mean(0)  # H
        torch.testing.assert_close(middle[slow], coarse[0, place, 0, 32:64][slow], atol=2e-3, rtol=0)
