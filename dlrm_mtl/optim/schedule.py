"""Factor on the learning rates, by step."""

from __future__ import annotations

import math

from dlrm_mtl.optim.config import ScheduleConfig


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor at ``step`` (0-based) of ``total_steps``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "none":
        return 1.0
    progress = min((step - config.warmup_steps) / max(total_steps - 1 - config.warmup_steps, 1), 1.0)
    shape = 1.0 - progress if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final + (1.0 - config.final) * shape
