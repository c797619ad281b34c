"""Learning rate as a pure function of the step."""

import math


def warmup_cosine(
    step: int,
    *,
    peak: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    start: float = 0.0,
) -> float:
    """Linear from `start` to `peak`, then half a cosine down towards `final`.

    As VideoMAE's `cosine_scheduler` (utils.py:386-400) with its arguments as they are really
    passed: the warm-up starts from 0 and reaches the peak at its last step, the cosine starts from
    the peak again.

    Args:
        step: from 0.
        peak: largest learning rate.
        final: what the cosine tends to.
        warmup_steps: length of the warm-up.
        total_steps: length of the whole schedule.
        start: where the warm-up starts; 0 in VideoMAE's recipes.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / max(warmup_steps - 1, 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))
