"""The learning rate of each optimizer step. Plan half: standard library only, a pure function of the step."""

from math import cos, pi

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def learning_rate(
    step: int,
    *,
    schedule: str,
    lr: float,
    warmup_steps: int,
    schedule_steps: int,
    min_lr_ratio: float,
    decay_fraction: float,
) -> float:
    """Learning rate of the update that takes the model from `step` to `step + 1` (the first is step 0).

    Warm-up rises linearly and is never 0: with 4 warm-up steps the first four updates use 1/4, 2/4, 3/4 and
    4/4 of `lr`. From `schedule_steps` on it stays at `lr * min_lr_ratio` (`constant` stays at `lr`). `wsd`
    holds `lr` and decays linearly over the last `decay_fraction` of the schedule (arXiv 2404.06395).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not known; known: {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    lr_min = lr * min_lr_ratio
    if step >= schedule_steps:
        return lr_min
    decay_start = warmup_steps
    if schedule == "wsd":
        decay_start = max(warmup_steps, schedule_steps - round(schedule_steps * decay_fraction))
    if step <= decay_start:
        return lr
    progress = (step - decay_start) / (schedule_steps - decay_start)
    if schedule == "cosine":
        return lr_min + (lr - lr_min) * (1.0 + cos(pi * progress)) / 2.0
    return lr + (lr_min - lr) * progress
