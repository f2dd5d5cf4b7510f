"""Text continuation, token by token: greedy or sampled, with a key-value cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.transformer import KeyValueCache, Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a token is drawn: logits are divided by the temperature, then cut by top_k, then by top_p."""

    temperature: float = 1.0
    """0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (nucleus, arXiv 1904.09751)."""


@torch.no_grad()
def generate_tokens(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Up to `max_tokens` tokens that follow the prompt, each as soon as it is known; ends before an EOS.

    `vocab_size` leaves out the embedding's padding rows, which no tokenizer can decode. Once the context
    fills the model's window, its newest half becomes the context, so the text may be of any length. The same
    seed gives the same tokens. The model must be in evaluation mode. Raises ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("a prompt needs at least one token; start from the end-of-text token")
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    window = model.config.max_seq_len
    context, cache = list(prompt)[-window:], KeyValueCache()
    unread = context
    for _ in range(max_tokens):
        x_BTD = model.hidden(torch.tensor([unread], device=device), cache=cache)
        logits_V = model.logits(x_BTD[:, -1:])[0, 0, :vocab_size]
        token = next_token(logits_V, sampling, generator)
        if token == eos_token_id:
            return
        yield token
        context.append(token)
        unread = [token]
        if len(context) > window:
            context = context[-max(1, window // 2) :]
            unread, cache = context, KeyValueCache()


def next_token(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one token from its logits; `generator` is on the CPU, so every device draws the same."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    logits, tokens = (logits_V.float().cpu() / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k is not None:
        logits, tokens = logits[: sampling.top_k], tokens[: sampling.top_k]
    shares = logits.softmax(dim=-1)
    # A token stays while those before it have not reached top_p: the likeliest one always does.
    is_kept = shares.cumsum(dim=-1) - shares < sampling.top_p
    is_kept[0] = True
    choice = torch.multinomial(shares * is_kept, 1, generator=generator)
    return int(tokens[choice])
