"""A pass that trains nothing, so that the first one that does takes no longer than the second."""

import torch

from model.objective import token_losses_sum
from model.transformer import Transformer


def rehearse_pass(model: Transformer, rows: int, seq_len: int) -> None:
    """One forward and backward pass of `model`, which is spoilt by it, over [rows, seq_len + 1] tokens.

    It touches the memory that activations and gradients need, which the allocator keeps, and starts autograd's
    threads and what each kernel sets up at its first call.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # whatever is there may be denormal, and slow
    tokens = torch.zeros((rows, seq_len + 1), dtype=torch.int64, device=device)
    token_losses_sum(model(tokens[:, :-1], None), tokens[:, 1:], torch.ones(rows, device=device)).backward()
