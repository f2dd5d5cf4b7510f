"""Training as a textbook has it: one process, plain torch, no DeepSpeed and no engine of ours."""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from rank.ranks import Data
from torch.nn import functional

from model.initial import initialise
from model.transformer import Transformer
from orchestrator.control.opening import OpenRun
from orchestrator.data.order import GlobalOrder


@dataclass(slots=True)
class Curve:
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def train_plainly(run: OpenRun, data: Data) -> Curve:
    """fp32, the whole global batch in one pass, or document by document; without dropout."""
    torch.set_num_threads(1)
    optim, seed = run.config.optim, run.config.run.seed
    model = Transformer(run.plan.model)
    initialise(model, run.plan.model, seed)
    optimizer = _optimizer(model, run)
    seq_len, batch_size = run.plan.batch.seq_len, run.plan.batch.global_batch_size
    stream = data.tokens()
    order = GlobalOrder(num_rows=(len(stream) - 1) // seq_len, seed=seed)
    curve = Curve()
    for step in range(run.plan.steps):
        ids = order.rows_of_window(step, batch_size)
        rows = torch.from_numpy(np.stack([stream[i * seq_len : i * seq_len + seq_len + 1] for i in ids]))
        parts = _documents(rows, data) if run.config.data.isolate_documents else [(rows[:, :-1], rows[:, 1:])]
        sums = [
            functional.cross_entropy(model(inputs, None).flatten(0, 1), targets.flatten(), reduction="sum")
            for inputs, targets in parts
        ]
        loss = torch.stack(sums).sum() / (batch_size * seq_len)
        optimizer.zero_grad()
        loss.backward()
        bound = optim.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
        rate = _cosine(step, run)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        curve.losses.append(loss.item())
        curve.grad_norms.append(norm.item())
        curve.rates.append(rate)
    return curve


def _documents(rows: torch.Tensor, data: Data) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each document of each row as a batch of its own: only right for rotary positions, which are relative."""
    parts = []
    for row in rows:
        inputs, targets = row[:-1], row[1:]
        ends = (inputs == data.manifest.tokenizer.eos_token_id).nonzero().flatten() + 1
        bounds = [0, *ends.tolist(), len(inputs)]
        parts += [(inputs[a:b][None], targets[a:b][None]) for a, b in itertools.pairwise(bounds) if a < b]
    return parts


def _optimizer(model: Transformer, run: OpenRun) -> torch.optim.Optimizer:
    optim = run.config.optim
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    match optim.name.value:
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps)
        case "adam":
            return torch.optim.Adam(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps)
        case _:
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def _cosine(step: int, run: OpenRun) -> float:
    optim = run.config.optim
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / (run.plan.schedule_steps - optim.warmup_steps)
    low = optim.lr * optim.min_lr_ratio
    return low + (optim.lr - low) * (1 + math.cos(math.pi * share)) / 2
