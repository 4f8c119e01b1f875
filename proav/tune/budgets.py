"""How long a trial trains at each rung: equal clips, equal training FLOPs by formula, or equal seconds.

FLOPs are those of `proav/costs`: three forward passes a clip, one more with recomputation, and the
discriminators' FLOPs from the clip at which they start. The first mdsa.linear_planes.alone_clips cost only
three passes of the linear planes. Nothing runs here.
"""

from proav.config import Config, TrainConfig, TuneConfig
from proav.costs import BACKWARD_FACTOR, Costs, costs

ENDLESS_CLIPS = 10**9
"""train.num_clips of a trial that ends by its seconds."""


def train_flops(config: Config, stage: str, clips: int) -> int:
    """FLOPs of a stage's training on `clips` clips."""
    bill = costs(config)
    if stage == "stdit":
        return clips * bill.stdit_train_flops
    alone = min(clips, config.mdsa.alone_clips)
    judged = max(0, clips - config.mdsa.loss.adversarial_start_clips)
    whole = (clips - alone) * bill.mdsa_train_flops + judged * bill.discriminators_train_flops
    return whole + (alone * BACKWARD_FACTOR * _linear_flops(config, bill) if alone else 0)


def _linear_flops(config: Config, bill: Costs) -> int:
    """FLOPs of one clip through the linear planes alone: what MDSA costs with them more than without."""
    linear = config.mdsa.linear_planes.model_copy(update={"enabled": False})
    mdsa = config.mdsa.model_copy(update={"linear_planes": linear})
    without = costs(config.model_copy(update={"mdsa": mdsa}))
    both = bill.mdsa_encode_flops + bill.mdsa_decode_flops
    return both - without.mdsa_encode_flops - without.mdsa_decode_flops


def clips_for_flops(config: Config, stage: str, flops: int) -> int:
    """The number of clips, in whole batches, whose training costs nearest to `flops`; at least one batch."""
    batch, changes = _train(config, stage).batch_size, [0]
    if stage == "mdsa":  # the cost of a clip changes at these
        changes += [config.mdsa.alone_clips, config.mdsa.loss.adversarial_start_clips]
    spent = {clips: train_flops(config, stage, clips) for clips in changes}
    last = max(clips for clips in changes if spent[clips] <= flops)
    a_clip = train_flops(config, stage, last + 1) - spent[last]
    clips = last + (flops - spent[last]) / a_clip
    return max(1, round(clips / batch)) * batch


def clips_at(base: Config, config: Config, rung: float) -> int | None:
    """Clips that the trial `config` of the sweep `base` has seen at a rung; None for a budget in seconds."""
    tune = base.tune
    if tune.budget == "seconds":
        return None
    if tune.budget == "clips":
        return int(rung)
    return clips_for_flops(config, tune.stage, train_flops(base, tune.stage, int(rung)))


def mdsa_clips(base: Config, config: Config) -> int:
    """Clips that MDSA trains on in a trial of both stages: mdsa.train.num_clips, or with tune.budget=flops
    the number that costs the same.
    """
    clips = base.mdsa.train.num_clips
    if base.tune.budget != "flops":
        return config.mdsa.train.num_clips
    return clips_for_flops(config, "mdsa", train_flops(base, "mdsa", clips))


def with_length(config: Config, stage: str, *, clips: int | None, seconds: float | None = None) -> Config:
    """The configuration with the stage's length set to `clips` or `seconds`."""
    model = getattr(config, stage)
    length = {"num_clips": ENDLESS_CLIPS if clips is None else clips, "max_seconds": seconds}
    return config.model_copy(
        update={stage: model.model_copy(update={"train": model.train.model_copy(update=length)})}
    )


def budget_words(tune: TuneConfig, rung: float) -> str:
    """`800 clips`, `800 clips' FLOPs`, `90 s`."""
    if tune.budget == "seconds":
        return f"{rung:g} s"
    return f"{int(rung):,} clips" + ("' FLOPs" if tune.budget == "flops" else "")


def budgets_words(tune: TuneConfig) -> str:
    """All rungs in words."""
    if tune.budget == "seconds":
        return f"{', '.join(f'{rung:g}' for rung in tune.rungs)} s of training"
    listed = ", ".join(f"{int(rung):,}" for rung in tune.rungs)
    return f"{listed} clips" + (", or what costs the same FLOPs" if tune.budget == "flops" else "")


def _train(config: Config, stage: str) -> TrainConfig:
    return getattr(config, stage).train
