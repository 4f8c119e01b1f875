"""Learning rates over a run: a pure function of settings and clips seen, so that resuming changes nothing."""

from proav.config import TrainConfig

FINAL_SHARE = 0.02
"""Share of the full rate in the last step of a decay. Our choice: near zero, but the step still counts."""


def rate_share(train: TrainConfig, clips: int) -> float:
    """The share of the full learning rate, in (0, 1], in the step that starts after `clips` clips.

        min(1, s / W, 1 - (1 - FINAL_SHARE) (s - (N - D)) / D),   s = min(clips + batch_size, N)

    W = warmup_clips, N = num_clips, D = decay_fraction * N. The share is a linear warm-up, then constant,
    then a linear decay over the last D clips (Haegele et al., 2024). If a resumed run has a larger num_clips,
    the decay moves to the new end.
    """
    seen = clips + train.batch_size
    share = min(1.0, seen / train.warmup_clips) if train.warmup_clips else 1.0
    left, decay_clips = max(0, train.num_clips - seen), train.decay_fraction * train.num_clips
    return share if left >= decay_clips else min(share, 1 - (1 - FINAL_SHARE) * (1 - left / decay_clips))


def learning_rates(train: TrainConfig, clips: int) -> dict[str, float]:
    """The rates of the step that starts after `clips` clips: {name of the setting: rate}."""
    share = rate_share(train, clips)
    names = ("learning_rate", "muon_learning_rate") if train.optimizer == "muon" else ("learning_rate",)
    return {name: getattr(train, name) * share for name in names}
