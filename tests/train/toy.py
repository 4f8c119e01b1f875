"""A model of 6,000 weights and its training step, for tests of the loop and the engines."""

import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from proav.config import Config, TrainConfig
from proav.models.layers import hidden_map
from proav.runs.checkpoint import load_checkpoint
from proav.train.ema import ExponentialMovingAverage
from proav.train.engines import make_engine
from proav.train.engines import zero as engine_room
from proav.train.loop import Asked, LoopState, StepOutput, mean_part, run_loop
from proav.train.resume import load_training, save_training

BATCH = 8


def toy_train(**values) -> TrainConfig:
    settings = {
        "num_clips": 10 * BATCH,
        "batch_size": BATCH,
        "engine": "torch",
        "precision": "fp32",
        "learning_rate": 1e-2,
        "warmup_clips": 3 * BATCH,
    }
    settings |= {
        "checkpoint_every_clips": 4 * BATCH,
        "report_every_clips": BATCH,
        "keep_checkpoints": 9,
        "ema_half_life_clips": 20.0,
        "ema_ramp_up": 0.5,
    }
    return TrainConfig(**settings | values)


class ToyModel(nn.Module):
    """Odd sizes, so that no tensor splits evenly over two workers; one hidden matrix has two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 33), nn.Linear(33, 3)
        self.gate, self.wide = hidden_map(nn.Linear(33, 66), parts=2), hidden_map(nn.Linear(33, 35))
        self.tall = hidden_map(nn.Linear(35, 33, bias=False))

    def forward(self, inputs_BI: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs_BI))
        value, gate = self.gate(hidden).chunk(2, dim=-1)
        return self.second(hidden + self.tall(torch.tanh(self.wide(value * gate))))


class ToyStep:
    """Regression onto a fixed function, with faults on request.

    poison: position or positions of clips whose loss is not a number; -1 for none
    steep: position of a clip whose gradient is not a number; -1 for none
    more_parts: whether a further part of the loss is reported
    """

    def __init__(self, poison: int | range = -1, steep: int = -1, more_parts: bool = False) -> None:
        self.poison, self.steep = list(poison) if isinstance(poison, range) else [poison], steep
        self.names = ("error", "more") if more_parts else ("error",)

    def loss(self, engine, batch, clips):
        outputs_BO = engine.forward(batch["inputs"].to(engine.device)).float()
        errors_B = (outputs_BO - batch["inputs"][:, :3].sin()).square().mean(1)
        poisoned_B = torch.isin(batch["position"], torch.tensor(self.poison))
        errors_B = torch.where(poisoned_B, torch.full_like(errors_B, float("nan")), errors_B)
        slope_B = torch.where(
            batch["position"] == self.steep, outputs_BO[:, 0] * 0, torch.ones(len(outputs_BO))
        )
        errors_B = (
            errors_B + slope_B.sqrt() - slope_B.detach().sqrt()
        )  # zero, with an infinite derivative at zero
        return StepOutput(errors_B.mean(), {name: mean_part(errors_B) for name in self.names})

    def backward_others(self, accumulation_steps):
        pass

    def check_others(self):
        pass

    def step_others(self):
        pass

    def discard_others(self):
        pass

    def tensors(self):
        return {}

    def load_tensors(self, read):
        pass


def toy_batches(start_step: int, rank: int = 0, world: int = 1):
    """Batches that depend on clip positions alone."""
    share, step = BATCH // world, start_step
    while True:
        positions = torch.arange(step * BATCH + rank * share, step * BATCH + (rank + 1) * share)
        inputs = torch.stack(
            [torch.randn(7, generator=torch.Generator().manual_seed(int(position))) for position in positions]
        )
        yield {"inputs": inputs, "position": positions}
        step += 1


def run_toy(
    folder: str,
    train: TrainConfig,
    *,
    resume: str | None = None,
    asked: Asked = Asked(),
    save_seconds: float = 0.0,
    **faults,
):
    """Trains the toy; returns (lines reported, final weights, final average).

    folder: where checkpoints are saved
    train: the settings of the training
    resume: path of the checkpoint to go on from; None to start anew
    asked: a request to stop the loop
    save_seconds: how much longer a checkpoint takes, as on a slow disk
    faults: arguments of ToyStep
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model, checkpoint = ToyModel(), load_checkpoint(resume) if resume else None
    if checkpoint:
        model.load_state_dict(checkpoint.weights("model"))
    engine = make_engine(
        model, train, device=torch.device("cpu"), micro_batch=BATCH // world // train.accumulation_steps
    )
    average = ExponentialMovingAverage(
        engine.shards(), half_life_clips=train.ema_half_life_clips, ramp_up=train.ema_ramp_up
    )
    step, lines = ToyStep(**faults), []
    state = load_training(checkpoint, engine, average, step) if checkpoint else LoopState()

    def save(state: LoopState) -> None:
        time.sleep(save_seconds)
        save_training(
            folder, engine, average, step, state, kind="mdsa", config=Config(), keep=train.keep_checkpoints
        )

    batches = toy_batches(state.step, rank, world)
    run_loop(step, batches, engine, average, state, report=lines.append, save=save, asked=asked)
    if train.engine == "deepspeed" and train.zero_stage == 3:
        assert_sharded(model)
    return lines, engine.assemble(engine.shards()), engine.assemble(average.shards)


def shard_everything() -> None:
    """Makes ZeRO stage 3 shard small weights too; all weights of these tests are small."""
    engine_room.WHOLE_BELOW = 0


def assert_sharded(module: nn.Module) -> None:
    """This worker holds no whole weight: stage 3 gathered each for the forward pass and freed it again."""
    assert all(parameter.numel() == 0 < parameter.ds_numel for parameter in module.parameters())


def on_workers(world: int, function, *arguments) -> None:
    """Runs function(*arguments) in `world` processes of a gloo group; an error in one is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(
            _enter, args=(world, str(Path(folder, "store")), function, arguments), nprocs=world
        )


def _enter(rank: int, world: int, store: str, function, arguments) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()
