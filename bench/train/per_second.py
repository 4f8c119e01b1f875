"""What three techniques bring to ST-DiT's training, at equal clips and at equal processor seconds.

    python -m bench.train.per_second RUN [--out DIR] [--seeds 0 1] [--clips N] [--only NAME ...]
    [--world DIR --windows N]

RUN is a finished run of a flow with full attention (its configuration, latents and MDSA are used; nothing in
it is written). Each technique is tried alone. Its code is in this file only, not in proav:

    routed    half of each plane's tokens skip the middle blocks (TREAD, Krause et al., 2025); as "routed at
              first" only for the first 60 % of the clips, before the learning rates fall
    aligned   a share of the tokens is at a second time. A teacher, the moving average, sees all tokens at the
              time with less noise. The student's early features learn to predict the teacher's late ones
              (SRA, Self-Flow)
    averages  moving averages of the plain run with other half-lives than the configured one, measured at the
              end and when the learning rates begin to fall. They show what averages of any length, made after
              training (EDM2), could bring

A step of each technique is timed, in turns, in one process. Then each trains with each seed, on `--clips`
clips (all but "routed at first") and on as many clips as fit into the plain run's processor seconds.
Measured on held-out windows: the flow's loss on the task that the run trains most, and, if that task is given
a stream, its loss at the highest noise with another window's. With --world DIR, the folder of
examples/world/make.py, and --windows N also `impact_synchrony` of sound for held-out pictures. Needs no Ray.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from bench.train.world_claim import held_out, measure, synchrony
from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.latent_feed import LatentFeed
from proav.diffusion.conditions import Conditions
from proav.diffusion.modalities import denoising_loss, mix_given
from proav.diffusion.noise import noise_batch, noise_for, uniforms_for
from proav.diffusion.tasks import draw_tasks, given_row
from proav.models.stdit import STDiT
from proav.models.stdit.transformer import modulate
from proav.runs.checkpoint import save_checkpoint
from proav.runs.layout import RunFolder
from proav.train.ema import ExponentialMovingAverage, ema_decay
from proav.train.engines import Engine, make_engine
from proav.train.generator_step import GeneratorStep
from proav.train.loop import LoopState, StepOutput, mean_part, run_loop
from proav.train.worker import plan_stage

ROUTED_SHARE = 0.5
"""Share of tokens that skip the middle blocks (every block but the first and the last)."""
SECOND_SHARE, ALIGNMENT_WEIGHT = 0.25, 0.5
"""Share of tokens at the second time; weight of the alignment beside the flow's loss."""
NUM_TIMES = 8
SECONDS_ALONE = ("routed at first",)
"""Variants that are not measured at equal clips."""
RAMPS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Half-lives of the tried averages, as shares of the clips seen."""


class RoutedSTDiT(STDiT):
    """ST-DiT with full attention, whose middle blocks see `kept_BK` alone; None: all tokens."""

    kept_BK: Tensor | None = None

    def forward(self, noisy_BDPNN: Tensor, times_B2: Tensor, conditions: Conditions) -> Tensor:
        vectors_B2d = F.silu(self.conditioning(times_B2, conditions))
        modulation_B26d = self._modulation(vectors_B2d)
        tokens_BLd = self.positions(self._tokens(noisy_BDPNN, conditions.masked_BEPNN))
        tokens_BLd = self.blocks[0](tokens_BLd, modulation_B26d)
        routed_BLd = tokens_BLd
        if self.kept_BK is not None:
            places = self.kept_BK[:, :, None].expand(-1, -1, tokens_BLd.shape[-1])
            routed_BLd = tokens_BLd.gather(1, places)
        for block in self.blocks[1:-1]:
            routed_BLd = block(routed_BLd, modulation_B26d)
        tokens_BLd = routed_BLd if self.kept_BK is None else tokens_BLd.scatter(1, places, routed_BLd)
        tokens_BLd = self.blocks[-1](tokens_BLd, modulation_B26d)
        shift_B2d, scale_B2d = self.final_modulation(vectors_B2d).chunk(2, dim=-1)
        tokens_BLd = self.layout.by_modality(modulate, tokens_BLd, shift_B2d, scale_B2d)
        return self._stack(tokens_BLd, noisy_BDPNN.shape[1]).to(noisy_BDPNN.dtype)

    def routed_flops(self, share: float) -> int:
        """FLOPs of one evaluation for one clip, with this share of tokens going around the middle blocks."""
        kept = round((1 - share) * self.layout.num_tokens)
        saved = 0
        for block in self.blocks[1:-1]:
            whole = block.flops()
            mlp = whole - block.joint.flops(self.layout.num_tokens, self.layout.num_tokens**2)
            saved += whole - block.joint.flops(kept, kept**2) - mlp * kept // self.layout.num_tokens
        return self.flops() - saved


class RoutedStep(GeneratorStep):
    routed_share_of_clips = 1.0

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        if clips >= self.routed_share_of_clips * self.config.stdit.train.num_clips:
            return super().loss(engine, batch, clips)
        counts = engine.module.layout.counts
        kept = []
        for position in batch["position"].tolist():
            draws = noise_for(self.config.seed, position, (sum(counts),), purpose="route").split(counts)
            starts = np.cumsum((0, *counts))
            kept.append(
                torch.cat(
                    [
                        start + draw.argsort()[: round(len(draw) * (1 - ROUTED_SHARE))].sort().values
                        for start, draw in zip(starts, draws)
                    ]
                )
            )
        engine.module.kept_BK = torch.stack(kept).to(engine.device)
        output = super().loss(engine, batch, clips)
        engine.module.kept_BK = None
        return output


class RoutedAtFirstStep(RoutedStep):
    routed_share_of_clips = 0.6


class AlignedSTDiT(STDiT):
    """ST-DiT with full attention and two times, one for each token. It returns features as well."""

    def __init__(self, config: Config, num_labels: int) -> None:
        super().__init__(config, num_labels)
        depth, width, _ = config.stdit.shape
        self.early, self.late = max(1, round(0.3 * depth)), round(0.7 * depth)
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def features(
        self,
        noisy_BDPNN: Tensor,
        times_B2: Tensor,
        conditions: Conditions,
        second_B2: Tensor | None = None,
        chosen_BL: Tensor | None = None,
        only: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(prediction, tokens after block `early`). With `only`: the tokens after that block, twice."""
        first_B2d = F.silu(self.conditioning(times_B2, conditions))
        pairs = [(self._modulation(first_B2d), self.final_modulation(first_B2d))]
        if second_B2 is not None:
            other_B2d = F.silu(self.conditioning(second_B2, conditions))
            pairs.append((self._modulation(other_B2d), self.final_modulation(other_B2d)))
        tokens_BLd = self.positions(self._tokens(noisy_BDPNN, conditions.masked_BEPNN))

        def spread(values_B2: Tensor) -> Tensor:  # one value for each token of a modality
            parts = zip(values_B2.unbind(1), self.layout.of_modalities, strict=True)
            return torch.cat([part[:, None].expand(-1, count, *part.shape[1:]) for part, count in parts], 1)

        if len(pairs) == 1:
            modulation, final = pairs[0]
        else:
            chosen = chosen_BL[:, :, None]
            modulation = torch.where(chosen[..., None], spread(pairs[1][0]), spread(pairs[0][0]))
            final = torch.where(chosen, spread(pairs[1][1]), spread(pairs[0][1]))
        early_BLd = tokens_BLd
        for number, block in enumerate(self.blocks):
            tokens_BLd = (
                block(tokens_BLd, modulation)
                if len(pairs) == 1
                else self._apart(block, tokens_BLd, modulation)
            )
            early_BLd = tokens_BLd if number + 1 == self.early else early_BLd
            if number + 1 == only:
                return tokens_BLd, tokens_BLd
        shift, scale = final.chunk(2, dim=-1)
        if len(pairs) == 1:
            tokens_BLd = self.layout.by_modality(modulate, tokens_BLd, shift, scale)
        else:
            tokens_BLd = modulate(tokens_BLd, shift, scale)
        return self._stack(tokens_BLd, noisy_BDPNN.shape[1]).to(noisy_BDPNN.dtype), early_BLd

    @staticmethod
    def _apart(block: nn.Module, x_BLd: Tensor, modulation_BL6d: Tensor) -> Tensor:
        """A block with full attention, each token modulated by its own vectors."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation_BL6d + block.table).unbind(2)
        x_BLd = x_BLd + gate_a * block.joint(modulate(x_BLd, shift_a, scale_a))
        return x_BLd + gate_m * block.mlp(modulate(x_BLd, shift_m, scale_m))

    def forward(self, *inputs, **named) -> tuple[Tensor, Tensor] | Tensor:
        found = self.features(*inputs, **named)
        return found if "second_B2" in named else found[0]


class AlignedStep(GeneratorStep):
    """The flow's loss, plus one minus the cosine of projected early features and the teacher's late ones."""

    teacher: AlignedSTDiT | None = None

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        self._follow(engine, clips, len(batch["position"]))
        draw = draw_tasks(self.config.seed, batch["position"], self.config)
        first = self.add_noise(batch, draw, engine.device)
        uniforms_B2 = torch.stack(
            [uniforms_for(self.config.seed, p, 2, purpose="second time") for p in batch["position"].tolist()]
        )
        second_B2 = self.process.draw_times(uniforms_B2).float().masked_fill(draw.given_B2, 0.0)
        second_B2 = second_B2.to(engine.device)
        layout = engine.module.layout
        chosen_BL = torch.stack(
            [
                noise_for(self.config.seed, p, (layout.num_tokens,), purpose="second tokens")
                for p in batch["position"].tolist()
            ]
        )
        chosen_BL = chosen_BL < torch.special.ndtri(torch.tensor(SECOND_SHARE, dtype=torch.float64))
        chosen_BL = chosen_BL.to(engine.device)
        planes = zip(chosen_BL.split(layout.counts, 1), layout.sides, engine.module.patches, strict=True)
        cells = torch.stack(
            [
                repeat(part, "b (n m) -> b (n i) (m j)", n=side, i=patch, j=patch)
                for part, side, patch in planes
            ],
            dim=1,
        )[:, None]
        noisy_BDPNN = torch.where(
            cells,
            self.process.add_noise(first.clean_BDPNN, first.noise_BDPNN, second_B2),
            first.noisy_BDPNN,
        )
        with torch.no_grad():
            earlier_B2 = torch.minimum(first.times_B2, second_B2)
            seen_BDPNN = self.process.add_noise(first.clean_BDPNN, first.noise_BDPNN, earlier_B2)
            late_BLd, _ = self.teacher.features(
                seen_BDPNN, earlier_B2, first.conditions, only=self.teacher.late
            )
        prediction_BDPNN, early_BLd = engine.forward(
            noisy_BDPNN, first.times_B2, first.conditions, second_B2=second_B2, chosen_BL=chosen_BL
        )
        target_BDPNN = self.process.target(first.clean_BDPNN, first.noise_BDPNN)
        losses_B = denoising_loss(
            prediction_BDPNN, target_BDPNN, first.given_B2, self.own_DP.to(engine.device)
        )
        apart_B = 1 - F.cosine_similarity(engine.module.project(early_BLd), late_BLd, dim=-1).mean(1)
        parts = {"flow_loss": mean_part(losses_B), "apart": mean_part(apart_B)}
        return StepOutput(losses_B.mean() + ALIGNMENT_WEIGHT * apart_B.mean(), parts)

    @torch.no_grad()
    def _follow(self, engine: Engine, clips: int, batch_clips: int) -> None:
        if self.teacher is None:
            self.teacher = copy.deepcopy(engine.module).requires_grad_(False)
            return
        train = self.config.stdit.train
        decay = ema_decay(
            batch_clips=batch_clips,
            clips=clips,
            half_life_clips=train.ema_half_life_clips,
            ramp_up=train.ema_ramp_up,
        )
        torch._foreach_lerp_(list(self.teacher.parameters()), list(engine.module.parameters()), 1 - decay)


VARIANTS: dict[str, tuple[type[STDiT], type[GeneratorStep]]] = {
    "plain": (STDiT, GeneratorStep),
    "routed": (RoutedSTDiT, RoutedStep),
    "routed at first": (RoutedSTDiT, RoutedAtFirstStep),
    "aligned": (AlignedSTDiT, AlignedStep),
}


class Averages:
    """The configured average, and averages whose half-life is a fixed share of the clips seen.

    moments: {name: clips seen} at which all are copied.
    """

    def __init__(self, engine: Engine, moments: dict[str, int]) -> None:
        train, shards = engine.train, engine.shards()
        self.moments, self.copies = moments, {}
        self.kept = {
            "ema": ExponentialMovingAverage(
                shards, half_life_clips=train.ema_half_life_clips, ramp_up=train.ema_ramp_up
            )
        }
        for ramp in RAMPS:
            self.kept[f"half-life {ramp}"] = ExponentialMovingAverage(
                shards, half_life_clips=float("inf"), ramp_up=ramp
            )

    def update(self, shards: dict[str, Tensor], *, clips: int, batch_clips: int) -> None:
        for average in self.kept.values():
            average.update(shards, clips=clips, batch_clips=batch_clips)
        for moment, due in self.moments.items():
            if clips - batch_clips < due <= clips:
                averages = {name: _copy(average.shards) for name, average in self.kept.items()}
                self.copies[moment] = {"weights": _copy(shards), **averages}


def _copy(shards: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: shard.detach().float().clone() for name, shard in shards.items()}


def build(config: Config, name: str):
    """(plan, model, step) of a variant, with the plain model's initial weights where both have them."""
    plan = plan_stage(config, "stdit")
    torch.manual_seed(config.seed)
    _, plain = plan.build(torch.device("cpu"))
    of_model, of_step = VARIANTS[name]
    torch.manual_seed(config.seed)
    statistics = {key: plan.description[key] for key in ("latent_mean", "latent_std")}
    step = of_step(config, num_labels=plain.num_labels, **statistics)
    return plan, of_model(config, plain.num_labels), step


def step_seconds(config: Config, names: list[str], rounds: int = 12) -> dict[str, float]:
    """Processor seconds of a step of each variant, median of steps by turns."""
    parts = {}
    for name in names:
        plan, model, step = build(config, name)
        engine = make_engine(model, config.stdit.train, device=torch.device("cpu"), micro_batch=16, log=print)
        parts[name] = (engine, step, plan.feed.iterate(0))
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 2):
        for name, (engine, step, batches) in parts.items():
            batch = next(batches)
            began = time.process_time()
            engine.backward(step.loss(engine, batch, 16 * number).loss)
            engine.step({"learning_rate": 1e-4, "muon_learning_rate": 1e-3})
            spent[name].append(time.process_time() - began)
    found = {name: float(np.median(values[2:])) for name, values in spent.items()}
    share = RoutedAtFirstStep.routed_share_of_clips
    return found | {"routed at first": share * found["routed"] + (1 - share) * found["plain"]}


@torch.inference_mode()
def loss_of(
    config: Config, model: STDiT, step: GeneratorStep, feed: LatentFeed, count: int
) -> dict[str, float]:
    """Held-out loss of the run's main task, also by time, and with another window's given stream."""
    weights = config.diffusion.task_weights
    given = given_row(max(weights, key=weights.get))
    picked = np.linspace(0, len(feed) - 1, count).round().astype(int)
    times = step.process.draw_times((torch.arange(NUM_TIMES, dtype=torch.float64) + 0.5) / NUM_TIMES).tolist()
    own, other = np.zeros((NUM_TIMES, count)), np.zeros(count)
    for first in range(0, count, 48):
        rows = feed.rows(picked[first : first + 48])
        given_B2 = torch.tensor([given] * len(rows["label"]))
        joint, lone = (step.scale.normalize(rows[kind]) for kind in ("joint", "lone"))
        clean = mix_given(joint, lone, given_B2)
        identities = [(0, int(index)) for index in picked[first : first + 48]]
        noise = noise_batch(identities, clean.shape[1:], purpose="evaluate")
        target = step.process.target(clean, noise)
        conditions = Conditions.of_rows(rows)
        for level, t in enumerate(times):
            times_B2 = torch.full((len(clean), 2), t).masked_fill(given_B2, 0.0)
            noisy = step.process.add_noise(clean, noise, times_B2)
            found = denoising_loss(model(noisy, times_B2, conditions), target, given_B2, step.own_DP)
            own[level, first : first + len(clean)] = found
        if any(given):
            swapped = mix_given(noisy, lone.roll(1, 0), given_B2)
            other[first : first + len(clean)] = denoising_loss(
                model(swapped, times_B2, conditions), target, given_B2, step.own_DP
            )
    found = {"loss": float(own.mean()), "at_noise": float(own[-1].mean())}
    if any(given):
        found["at_noise_other"] = float(other.mean())
    return found | {"by_time": [round(float(value), 4) for value in own.mean(1)]}


def train_variant(
    config: Config, name: str, out: Path, windows: int, sounds: Callable[[str], dict] | None
) -> dict:
    """Trains one variant on config.stdit.train.num_clips clips, and measures it."""
    plan, model, step = build(config, name)
    train = config.stdit.train
    engine = make_engine(model, train, device=torch.device("cpu"), micro_batch=train.batch_size, log=print)
    falls = round((1 - train.decay_fraction) * train.num_clips)
    averages = Averages(engine, {"falling begins": falls, "end": train.num_clips})
    began = time.process_time()
    run_loop(
        step, plan.feed.iterate(0), engine, averages, LoopState(),
        report=lambda line: None, save=lambda state: None,
    )  # fmt: skip
    seconds = time.process_time() - began
    feed = LatentFeed(RunFolder(config).latents, labels=plan.labels, split="validation")

    def measured(weights: dict[str, Tensor]) -> dict:
        model.load_state_dict(weights)
        return loss_of(config, model, step, feed, min(windows, len(feed)))

    found = {
        "clips": train.num_clips,
        "cpu_seconds": seconds,
        "ema": measured(_copy(averages.kept["ema"].shards)),
    }
    if name == "plain":
        for moment, copies in averages.copies.items():
            found[moment] = {kind: measured(each)["loss"] for kind, each in copies.items()}
    if sounds is not None:

        def heard(weights: dict[str, Tensor], place: str) -> dict:
            own = {key: value for key, value in weights.items() if not key.startswith("project.")}
            path = save_checkpoint(
                str(out / place), kind="stdit", clips=train.num_clips, step=0, config=config,
                labels=plan.labels, tensors={"ema": own, "mdsa": plan.mdsa_weights()}, **plan.description,
            )  # fmt: skip
            return sounds(path)

        found["synchrony"] = heard(averages.kept["ema"].shards, f"{name}-{config.seed}-{train.num_clips}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/per-second"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--held-out", type=int, default=96, help="windows for the loss")
    parser.add_argument("--world", type=Path)
    parser.add_argument("--windows", type=int, default=0, help="held-out clips to make sound for")
    arguments = parser.parse_args()
    if (arguments.world is None) != (arguments.windows == 0):
        parser.error("--world DIR and --windows N go together")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "results.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}

    def config_of(seed: int, clips: int) -> Config:
        words = [f"seed={seed}", f"run_dir={arguments.run.resolve()}", f"stdit.train.num_clips={clips}"]
        return load_config(str(arguments.run / "config.yaml"), words)

    sounds = None
    if arguments.windows:
        clip = config_of(0, arguments.clips).clip
        shape = {
            name: getattr(clip, name) for name in ("num_frames", "fps", "sample_rate", "height", "width")
        }
        given, labels, _ = held_out(arguments.world, arguments.windows, shape)

        def sounds(path: str) -> dict[str, float]:
            scores = measure(Path(path), given, labels)
            return {name: synchrony(scores[name], np.arange(len(given))) for name in ("own", "other")}

    if "step_seconds" not in results:
        results["step_seconds"] = step_seconds(config_of(0, arguments.clips), ["plain", "routed", "aligned"])
        _, routed, _ = build(config_of(0, arguments.clips), "routed")
        results["routed_flops"] = routed.routed_flops(ROUTED_SHARE) / routed.flops()
        stored.write_text(json.dumps(results, indent=1))
    seconds = results["step_seconds"]
    print(f"processor seconds of a step: {seconds}; FLOPs of routed: {results['routed_flops']:.3f}")
    for seed in arguments.seeds:
        for name in arguments.only:
            equal = round(arguments.clips * seconds["plain"] / seconds[name] / 160) * 160
            equal = arguments.clips if name == "plain" else equal
            for clips in dict.fromkeys((equal, *(() if name in SECONDS_ALONE else (arguments.clips,)))):
                key = f"{name}, {clips} clips, seed {seed}"
                if key in results:
                    continue
                results[key] = train_variant(
                    config_of(seed, clips), name, arguments.out, arguments.held_out, sounds
                )
                stored.write_text(json.dumps(results, indent=1))
                print(key, json.dumps(results[key]), file=sys.stderr, flush=True)
    print(json.dumps({"bench": "per_second", **results}))


if __name__ == "__main__":
    main()
