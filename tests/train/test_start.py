"""Models that start from trained ones: the same function where nothing differs, and resized, or refused."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from proav.errors import CheckpointError
from proav.models.stdit import STDiT
from proav.models.stdit.embeddings import TokenPositions
from proav.runs.checkpoint import load_checkpoint
from proav.train.start import LABEL_TABLE, check_starts, kept_spacing, open_start, start_stdit
from proav.train.worker import _build, plan_stage, train_worker
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
    told, begun = capfd.readouterr().err, load_checkpoint(f"{tmp_path}/run/mdsa/checkpoints")
    assert "weights from" in told and "8 clips" in told and "fitted" not in told and "untrained" not in told
    assert_same(begun.weights("model"), load_checkpoint(trained).weights("ema"))
    assert begun.init_hash == load_checkpoint(trained).hash


def test_an_autoencoder_also_starts_from_the_one_that_a_generator_carries(tmp_path):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    words = (*TORCH, *STILL, f"mdsa.init_from={trained}")
    train_worker(prepare(f"{tmp_path}/run", "mdsa", *words), "mdsa", device=CPU)
    assert_same(weights_of(f"{tmp_path}/run", "mdsa"), load_checkpoint(trained).weights("mdsa"))


def test_a_generator_starts_where_another_ended_and_the_other_may_go(tmp_path, capfd):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    expected, init_hash = load_checkpoint(trained).weights("ema"), load_checkpoint(trained).hash
    words = (*TORCH, *STILL[1:], f"stdit.init_from={trained}")
    config = prepare(f"{tmp_path}/run", "stdit", *words)
    train_worker(config, "stdit", device=CPU)
    assert "weights from" in capfd.readouterr().err
    assert_same(weights_of(f"{tmp_path}/run", "stdit"), expected)
    shutil.rmtree(f"{tmp_path}/trained")  # a run that has begun does not read it again
    more = tiny_config(f"run_dir={tmp_path}/run", *words, "train.num_clips=8")
    assert train_worker(more, "stdit", device=CPU)["clips"] == 8
    assert "continuing from" in capfd.readouterr().err
    assert load_checkpoint(f"{tmp_path}/run/stdit/checkpoints").init_hash == init_hash
    for stage in ("stdit", "mdsa"):
        check_starts(more, stage)  # a command for a begun run is not refused because the start has gone


def test_how_a_run_began_is_not_changed(tmp_path):
    """Else MDSA would go on without the network, or a start would be named that had no effect."""
    trained = save_tiny_mdsa(f"{tmp_path}/trained", tiny_config())
    start, alone = f"mdsa.init_from={trained}", "mdsa.linear_planes.alone_clips=100"
    for words, then, told in (
        ([start], [], r"began with the weights of another model .*write mdsa.init_from=PATH"),
        ([], [start], "mdsa.init_from=.* has no effect: .* began without it"),
    ):
        folder = f"{tmp_path}/{len(words)}"
        train_worker(prepare(folder, "mdsa", *TORCH, *STILL, alone, *words), "mdsa", device=CPU)
        more = tiny_config(f"run_dir={folder}", *TORCH, *STILL, alone, *then, "train.num_clips=8")
        with pytest.raises(CheckpointError, match=told):
            train_worker(more, "mdsa", device=CPU)


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
    told, init_hash = start_stdit(model, checkpoint, labels, checkpoint)
    assert init_hash == checkpoint.hash and "OTHER PLANES" not in told
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
    told, _ = start_stdit(model, checkpoint, (), checkpoint)
    assert "labels left behind: rain, speech; vectors left behind: words" in told and "new" not in told
    assert torch.equal(model.state_dict()[LABEL_TABLE], expected[LABEL_TABLE][2:])


def start_here(config, folder):
    torch.manual_seed(dist.get_rank())
    model, _, init_hash = _build(
        plan_stage(config, "mdsa"), config.mdsa.train, None, device=CPU, say=lambda line: None
    )
    torch.save((model.state_dict(), init_hash), f"{folder}/{dist.get_rank()}.pt")


def test_all_workers_start_alike(tmp_path):
    trained = save_tiny_mdsa(f"{tmp_path}/trained", tiny_config())
    config = prepare(f"{tmp_path}/run", "mdsa", *TORCH, f"mdsa.init_from={trained}")
    on_workers(2, start_here, config, str(tmp_path))
    checkpoint = load_checkpoint(trained)
    for rank in range(2):
        weights, init_hash = torch.load(tmp_path / f"{rank}.pt")
        assert init_hash == checkpoint.hash
        assert_same(weights, checkpoint.weights("ema"))


def test_another_sequence_beside_trained_ones_starts_silent(tmp_path):
    before = tiny_config("stdit.vectors={words: [3, 6]}")
    trained = save_tiny_stdit(f"{tmp_path}/trained", before)
    config = tiny_config(f"stdit.init_from={trained}", "stdit.vectors={text: [3, 6]}")
    checkpoint = open_start(config, "stdit")
    model = STDiT(config, len(LABELS))
    start_stdit(model, checkpoint, LABELS, checkpoint)
    new = [value for name, value in model.state_dict().items() if "of_text" in name]
    assert new and all((value == 0).all() for value in new)
    assert (model.state_dict()["blocks.0.cross.out.weight"] != 0).any()


def test_latents_of_an_unrelated_autoencoder_are_told(tmp_path):
    """Each MDSA has its own planes: what ST-DiT has learned of one's is worth little with another's."""
    trained = load_checkpoint(save_tiny_stdit(f"{tmp_path}/trained", tiny_config()))
    trained, config = replace(trained, mdsa_hash="abc"), tiny_config()

    def told(mdsa):
        return "OTHER PLANES" in start_stdit(STDiT(config, 2), trained, LABELS, mdsa).line

    other = load_checkpoint(save_tiny_mdsa(f"{tmp_path}/other", tiny_config("seed=1")))
    assert told(other)
    assert not told(replace(other, hash="abc"))  # the one it was trained with
    assert not told(replace(other, init_hash=trained.hash))  # one that started from it


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        ("mdsa", ["mel.max_hz=4000"], "trained with mel.max_hz=8000.0; this run has mel.max_hz=4000.0"),
        ("stdit", ["mdsa.audio_input=tiled"], "trained with mdsa.audio_input=native"),
        ("mdsa", ["mdsa.width=24"], "trained with mdsa.width=16; this run has mdsa.width=24"),
        ("mdsa", ["mdsa.refiner.enabled=false"], "mdsa.refiner.enabled=True"),
        ("stdit", ["stdit.depth=2"], "trained with stdit.depth=1; this run has stdit.depth=2"),
        ("stdit", ["diffusion.objective=ddpm"], "objective=flow; this run has diffusion.objective=ddpm"),
        ("stdit", ["mdsa.latent_channels=8"], "trained with mdsa.latent_channels=4"),
        ("stdit", LARGER[:3], r"stdit.position_spacing=\[1,1\] .* write stdit.position_spacing=\[0.5,0.5\]"),
        ("stdit", ["clip.fps=10"], r"write stdit.position_spacing=\[1,0.5\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_write(tmp_path, stage, words, told):
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config())
    with pytest.raises(CheckpointError, match=told):
        open_start(tiny_config(*words, f"{stage}.init_from={trained}"), stage)


def test_planes_whose_tokens_would_grow_are_refused_with_sides_that_fit(tmp_path):
    planes = "mdsa.plane_channels.video=[64,4,1]"
    trained = save_tiny_stdit(f"{tmp_path}/trained", tiny_config(planes))
    with pytest.raises(
        CheckpointError, match=r"patches \[2, 4, 4.*this run \[2, 8, 8.*plane_size=4, 12, 20,"
    ):
        open_start(tiny_config(planes, *LARGER, f"stdit.init_from={trained}"), "stdit")


def test_a_flow_map_is_no_start(tmp_path):
    trained = save_tiny_stdit(str(tmp_path), tiny_config("diffusion.objective=flow_map"))
    with pytest.raises(CheckpointError, match="is a flow map; name the ST-DiT that it was made from"):
        open_start(tiny_config(f"stdit.init_from={trained}"), "stdit")


def test_positions_without_times_ask_for_places_alone():
    before, after = (tiny_config("stdit.positions=plain", f"clip.fps={fps}") for fps in (5, 10))
    assert kept_spacing(after, before) == (1.0, 1.0)


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
