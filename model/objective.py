"""The objective: cross entropy, always as a sum over target tokens.

Whoever knows the global batch divides by its count of target tokens; a mean of means would weigh the tokens
of uneven ranks differently. Shape legend: see `transformer.py`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.transformer import document_ids

CHUNK_ELEMENTS = 1 << 24
"""Logits that are held in fp32 at a time: 64 MiB."""


def token_losses_sum(logits_BTV: Tensor, targets_BT: Tensor, weights_B: Tensor) -> Tensor:
    """Sum over all target tokens of -ln p(target), each row times its weight: a scalar in fp32.

    `targets_BT` is int64; a padding row has weight 0. Computed in fp32 whatever the logits' type, without
    an fp32 copy of all logits in either pass. Weights get no gradient.
    """
    weights_BT = weights_B.to(torch.float32)[:, None].expand_as(targets_BT)
    return _WeightedCrossEntropy.apply(logits_BTV.flatten(0, 1), targets_BT.flatten(), weights_BT.flatten())


@torch.no_grad()
def evaluate_rows(
    model: nn.Module,
    rows: Iterable[np.ndarray[Any, Any] | Tensor],
    *,
    device: torch.device | str = "cpu",
    eos_token_id: int | None = None,
) -> tuple[float, int]:
    """Summed loss in nats and number of target tokens over batches of rows, each int64 [B, T + 1].

    `model` is a Transformer or an engine around one. `eos_token_id` isolates documents, as in training; None
    lets a row's tokens see all before them. Dropout is off during the call; the model's mode is put back.
    """
    was_training = model.training
    model.train(False)
    try:
        loss_sum, tokens = 0.0, 0
        for batch in rows:
            rows_BU = torch.as_tensor(batch, dtype=torch.int64).to(device)
            tokens_BT, targets_BT = rows_BU[:, :-1].contiguous(), rows_BU[:, 1:].contiguous()
            document_BT = None if eos_token_id is None else document_ids(tokens_BT, eos_token_id)
            logits_BTV = model(tokens_BT, document_BT)
            weights_B = torch.ones(len(rows_BU), device=device)
            loss_sum += token_losses_sum(logits_BTV, targets_BT, weights_B).item()
            tokens += targets_BT.numel()
        return loss_sum, tokens
    finally:
        model.train(was_training)


class _WeightedCrossEntropy(torch.autograd.Function):
    """Keeps the logits in their own type and one fp32 number a token; the backward pass goes in chunks too.

    Shapes: M = B * T.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, targets_M: Tensor, weights_M: Tensor) -> Tensor:
        norms = []
        total = torch.zeros((), dtype=torch.float32, device=logits_MV.device)
        for logits, targets, weights in _chunks(logits_MV, targets_M, weights_M):
            logits_fp32 = logits.float()
            norm = logits_fp32.logsumexp(dim=-1)
            target_logit = logits_fp32.gather(1, targets[:, None]).squeeze(1)
            total += ((norm - target_logit) * weights).sum()
            norms.append(norm)
        ctx.save_for_backward(logits_MV, targets_M, weights_M, torch.cat(norms))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        logits_MV, targets_M, weights_M, norm_M = ctx.saved_tensors
        grad_MV = torch.empty_like(logits_MV)
        scale_M = weights_M * grads[0].float()
        chunks = _chunks(logits_MV, targets_M, scale_M, norm_M, grad_MV)
        for logits, targets, scale, norm, grad in chunks:
            # d loss / d logits = softmax(logits) - onehot(target)
            share = (logits.float() - norm[:, None]).exp_()
            share.scatter_add_(1, targets[:, None], share.new_full((len(targets), 1), -1.0))
            grad.copy_(share.mul_(scale[:, None]))
        return grad_MV, None, None


def _chunks(logits_MV: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
    chunk = max(1, CHUNK_ELEMENTS // logits_MV.shape[1])
    return zip(*(tensor.split(chunk) for tensor in (logits_MV, *others)), strict=True)
