"""The torch optimizers that DeepSpeed partitions, with decayed and undecayed parameter groups."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

KINDS_OF = {"adamw": ("exp_avg", "exp_avg_sq"), "adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum",)}
"""Optimizer name -> the moments it keeps for every parameter (SGD without momentum keeps none)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    name: str
    """`adamw`, `adam` (weight decay added to the gradient) or `sgd`."""
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    momentum: float

    @property
    def moments(self) -> tuple[str, ...]:
        return () if self.name == "sgd" and self.momentum == 0 else KINDS_OF[self.name]


def is_decayed(shape: tuple[int, ...]) -> bool:
    """Matrices are decayed; biases and norms are not (GPT-2's and Llama's practice)."""
    return len(shape) >= 2


def parameter_groups(
    named: Iterable[tuple[torch.nn.Parameter, tuple[int, ...]]], settings: OptimizerSettings
) -> list[dict[str, object]]:
    """At most two groups, empty ones left out: DeepSpeed can't partition a group without parameters."""
    pairs = list(named)
    decayed = [parameter for parameter, shape in pairs if is_decayed(shape)]
    undecayed = [parameter for parameter, shape in pairs if not is_decayed(shape)]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, object]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Fused kernels where torch has them (one pass over the state), on the CPU too."""
    match settings.name:
        case "adamw" | "adam":
            kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
            return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
        case other:
            raise ValueError(f"unknown optimizer {other}")
