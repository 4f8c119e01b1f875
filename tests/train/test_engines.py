"""Engines on a toy: every ZeRO stage, worker count and split of a batch agrees with plain torch.

Resuming is exact, and non-finite numbers never reach the weights.
"""

import time

import pytest
import torch
import torch.distributed as dist

from proav.runs.checkpoint import list_checkpoints, load_checkpoint
from proav.train.engines import NonFiniteError
from proav.train.engines.base import LossScale
from proav.train.loop import Asked
from tests.train.toy import BATCH, on_workers, run_toy, shard_everything, toy_train

HALF = f"clips-{4 * BATCH:012d}"
MUON = {"optimizer": "muon", "muon_learning_rate": 0.05, "muon_weight_decay": 0.1, "decay_fraction": 0.5}


def losses(lines):
    return torch.tensor([line["loss"] for line in lines], dtype=torch.float64)


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.cpu(), second[name].cpu(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_and_resuming_is_exact(tmp_path, optimizer):
    train = toy_train(**MUON | {"optimizer": optimizer})
    lines, weights, average = run_toy(str(tmp_path / "whole"), train)
    assert [line["clips"] for line in lines] == [BATCH * step for step in range(1, 11)]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    half = str(tmp_path / "whole" / HALF)
    again, weights_again, average_again = run_toy(str(tmp_path / "again"), train, resume=half)
    assert torch.equal(losses(again), losses(lines)[4:])
    assert_close(weights, weights_again, 0)
    assert_close(average, average_again, 0)


def test_a_resume_between_reports_keeps_the_curve(tmp_path):
    train = toy_train(report_every_clips=3 * BATCH)
    lines, *_ = run_toy(str(tmp_path / "whole"), train)
    again, *_ = run_toy(str(tmp_path / "again"), train, resume=str(tmp_path / "whole" / HALF))
    assert [line["clips"] for line in again] == [6 * BATCH, 9 * BATCH, 10 * BATCH]
    assert torch.equal(losses(again), losses(lines)[1:])


def resume_on_two_workers(folder, whole):
    """Both workers report the part that was switched off, and also if no batch since the resume was used."""
    train = toy_train(report_every_clips=3 * BATCH, skip_nonfinite=2)
    lines, *_ = run_toy(f"{folder}/off", train, resume=f"{folder}/whole/{HALF}")
    torch.testing.assert_close(losses(lines), losses(whole)[1:], rtol=1e-5, atol=0)
    assert ["more" in line for line in lines] == [True, False, False]
    left_out = range(4 * BATCH, 6 * BATCH)
    lines, *_ = run_toy(f"{folder}/left-out", train, resume=f"{folder}/whole/{HALF}", poison=left_out)
    assert [line["clips"] for line in lines] == [6 * BATCH, 9 * BATCH, 10 * BATCH]
    assert lines[0]["loss"] == lines[0]["more"]  # of the batch before the resume


def test_a_resume_between_reports_on_more_workers_without_a_part_of_the_loss(tmp_path):
    train = toy_train(report_every_clips=3 * BATCH)
    lines, *_ = run_toy(str(tmp_path / "whole"), train, more_parts=True)
    on_workers(2, resume_on_two_workers, str(tmp_path), lines)


def test_the_time_of_checkpoints_is_no_time_of_training(tmp_path):
    began = time.monotonic()
    lines, *_ = run_toy(str(tmp_path), toy_train(checkpoint_every_clips=BATCH), save_seconds=0.2)
    assert lines[-1]["seconds"] < time.monotonic() - began - 10 * 0.2  # 10 checkpoints


def test_accumulation_changes_nothing(tmp_path):
    lines, weights, _ = run_toy(str(tmp_path / "a"), toy_train())
    split_lines, split_weights, _ = run_toy(str(tmp_path / "b"), toy_train(accumulation_steps=4))
    torch.testing.assert_close(losses(lines), losses(split_lines), rtol=1e-5, atol=0)
    assert_close(weights, split_weights, 1e-5)


def test_low_precision_keeps_fp32_weights(tmp_path):
    reference, *_ = run_toy(str(tmp_path / "fp32"), toy_train())
    for precision in ("bf16", "fp16"):
        lines, weights, _ = run_toy(str(tmp_path / precision), toy_train(precision=precision))
        torch.testing.assert_close(losses(lines), losses(reference), rtol=0.02, atol=0)
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_fp16_overflows_skip_steps_until_the_scale_fits():
    scale = LossScale("fp16")
    assert scale.after_step(overflow=True) and scale.scale == 2.0**15
    for _ in range(LossScale.GROWTH_STEPS):
        assert scale.after_step(overflow=False)
    assert scale.scale == 2.0**16
    scale.scale = 1.0
    assert not scale.after_step(overflow=True)  # no smaller scale helps: the run must stop
    assert not LossScale("bf16").after_step(overflow=True)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("poison", "the loss is not finite; loss nan"), ("steep", "the gradient norm is nan; loss 0")],
)
def test_broken_numbers_stop_before_the_optimizer(tmp_path, fault, reason):
    bad_step = 6
    with pytest.raises(
        NonFiniteError,
        match=rf"before optimizer step {bad_step + 1} \({bad_step * BATCH} clips seen\): "
        rf"{reason}.* on clip positions \[48, 49,",
    ):
        run_toy(str(tmp_path), toy_train(checkpoint_every_clips=BATCH), **{fault: bad_step * BATCH + 3})
    assert load_checkpoint(str(tmp_path)).clips == bad_step * BATCH
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(str(tmp_path)).weights("model").values())


@pytest.mark.parametrize("fault", ["poison", "steep"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_broken_batches_can_be_left_out(tmp_path, fault, accumulation_steps):
    left_out_leaves_the_weights(str(tmp_path), fault, engine="torch", accumulation_steps=accumulation_steps)


def left_out_leaves_the_weights(folder, fault, **settings):
    train = toy_train(checkpoint_every_clips=BATCH, skip_nonfinite=1, keep_checkpoints=12, **settings)
    bad, before = {fault: 6 * BATCH + 6}, f"{folder}/clips-{6 * BATCH:012d}"
    lines, _, _ = run_toy(folder, train, **bad)
    again, _, _ = run_toy(f"{folder}-again", train, resume=before, **bad)
    assert [line["clips"] for line in lines] == [clips * BATCH for clips in (1, 2, 3, 4, 5, 6, 8, 9, 10)]
    torch.testing.assert_close(losses(again), losses(lines)[6:], rtol=1e-12, atol=0)
    before, at, after = (load_checkpoint(f"{folder}/clips-{clips * BATCH:012d}") for clips in (6, 7, 8))
    assert_close(at.weights("model"), before.weights("model"), 0)
    assert at.training["loop"]["skipped_in_a_row"] == 1 and after.training["loop"]["skipped_in_a_row"] == 0
    assert any((after.weights("model")[name] != tensor).any() for name, tensor in at.weights("model").items())
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(folder).weights("model").values())


def test_more_broken_batches_in_a_row_than_allowed_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match=r"positions \[8, 9, .*train.skip_nonfinite=10"):
        run_toy(str(tmp_path), toy_train(skip_nonfinite=1, learning_rate=1e-2), poison=range(2 * BATCH))


def test_a_stopped_loop_keeps_what_is_done_and_goes_on(tmp_path):
    whole, weights, _ = run_toy(str(tmp_path / "whole"), toy_train())
    calls = iter(range(100))
    first, _, _ = run_toy(str(tmp_path / "parts"), toy_train(), asked=Asked(stop=lambda: next(calls) == 5))
    assert [line["clips"] for line in first] == [clips * BATCH for clips in (1, 2, 3, 4, 5)]
    assert load_checkpoint(str(tmp_path / "parts")).clips == 5 * BATCH  # every step that was done
    rest, weights_again, _ = run_toy(str(tmp_path / "parts"), toy_train(), resume=str(tmp_path / "parts"))
    torch.testing.assert_close(losses(first + rest), losses(whole), rtol=0, atol=0)
    assert_close(weights_again, weights, 0)


def test_checkpoints_by_time(tmp_path):
    run_toy(str(tmp_path), toy_train(checkpoint_every_clips=1000, checkpoint_every_minutes=1e-9))
    assert [clips for clips, _ in list_checkpoints(str(tmp_path))][0:2] == [10 * BATCH, 9 * BATCH]


def on_two_workers(folder):
    """All checks in one group of processes, as starting DeepSpeed takes longer than any check."""
    shard_everything()
    zero_stages_agree(folder)
    zero_stages_agree(f"{folder}/muon", **MUON)
    shared_matrices_agree(f"{folder}/muon")
    broken_numbers_stop_all(folder)
    for stage in (1, 2, 3):
        for fault in ("poison", "steep"):
            settings = {"engine": "deepspeed", "zero_stage": stage}
            settings["accumulation_steps"] = 1 if stage == 3 else 2
            left_out_leaves_the_weights(f"{folder}/left-out-{stage}-{fault}", fault, **settings)


def zero_stages_agree(folder, **settings):
    """On two workers, stages 1 to 3 agree with a torch run of one worker.

    Resuming a stage's own run is exact, and a resume of the torch run's checkpoint agrees too.
    """
    reference = load_checkpoint(f"{folder}/torch/clips-{10 * BATCH:012d}")
    for stage in (1, 2, 3):
        settings = settings | {"accumulation_steps": 1 if stage == 3 else 2}
        train = toy_train(engine="deepspeed", zero_stage=stage, **settings)
        lines, weights, average = run_toy(f"{folder}/{stage}", train)
        again, weights_again, average_again = run_toy(
            f"{folder}/{stage}-again", train, resume=f"{folder}/{stage}/{HALF}"
        )
        _, converted, converted_average = run_toy(
            f"{folder}/{stage}-converted", train, resume=f"{folder}/torch/{HALF}"
        )
        torch.testing.assert_close(losses(again), losses(lines)[4:], rtol=1e-12, atol=0)
        if dist.get_rank() == 0:
            assert_close(weights, weights_again, 0)
            assert_close(average, average_again, 0)
            for result, name in (
                (weights, "model"),
                (average, "ema"),
                (converted, "model"),
                (converted_average, "ema"),
            ):
                assert_close(result, reference.weights(name), 1e-5)


def shared_matrices_agree(folder):
    """Two workers of the torch engine, which share the orthogonalization, agree with one worker."""
    _, weights, _ = run_toy(f"{folder}/shared", toy_train(**MUON))
    assert_close(weights, load_checkpoint(f"{folder}/torch").weights("model"), 1e-5)


def broken_numbers_stop_all(folder):
    """On two workers, the broken clip is one of worker 1's, and both workers stop.

    The error names the clips of both workers. The saved weights are those of the step before.
    """
    for stage in (0, 2, 3):
        for fault in ("poison", "steep"):
            train = toy_train(engine="deepspeed", zero_stage=stage, checkpoint_every_clips=BATCH)
            with pytest.raises(
                NonFiniteError, match=r"positions \[24, 25, 26, 27\]; .*positions \[28, 29, 30, 31\]"
            ):
                run_toy(f"{folder}/{stage}{fault}", train, **{fault: 3 * BATCH + 6})
            assert load_checkpoint(f"{folder}/{stage}{fault}").clips == 3 * BATCH


def test_zero_on_two_workers_agrees_with_one_torch_worker_and_stops_on_broken_numbers(tmp_path):
    folders = ((tmp_path, {}), (tmp_path / "muon", MUON))
    for folder, settings in folders:
        run_toy(str(folder / "torch"), toy_train(**settings))
    on_workers(2, on_two_workers, str(tmp_path))
    for folder, settings in folders:  # back to one torch worker from a sharded run of two
        _, weights, _ = run_toy(str(folder / "back"), toy_train(**settings), resume=str(folder / "3" / HALF))
        assert_close(weights, load_checkpoint(f"{folder}/torch").weights("model"), 1e-5)
