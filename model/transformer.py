"""The network: a decoder-only Transformer, pre-norm.

Shape legend; a tensor's name ends in its shape:
    B batch (rows)      T time: the tokens of this call     S time: all tokens attended to, with cached ones
    D hidden_size       F ffn_hidden_size                   V vocabulary
    N query heads       G key and value heads (G <= N)      K size of one head
    N and G are what this process holds, so tensor parallelism may split the heads.

Parameters are left uninitialised (see `initial.py`), hold no buffers, and are never read during construction,
so the module can be built under ZeRO-3's partitioning and on the meta device.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import Activation, ModelConfig, Norm, Positions


def document_ids(tokens_BT: Tensor, eos_token_id: int) -> Tensor:
    """Number of each token's document within its row, int64 [B, T]; an end-of-text token ends its document.

    `a b eos c` gives 0 0 0 1.
    """
    is_eos_BT = (tokens_BT == eos_token_id).long()
    return is_eos_BT.cumsum(dim=1) - is_eos_BT


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of the tokens seen so far, per layer: [B, G, S, K]. One per generated sequence."""

    length: int = 0
    """Tokens seen."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extend(self, layer: int, key_BGTK: Tensor, value_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values to a layer; returns all of them."""
        if layer in self.layers:
            old_key_BGSK, old_value_BGSK = self.layers[layer]
            key_BGTK = torch.cat((old_key_BGSK, key_BGTK), dim=2)
            value_BGTK = torch.cat((old_value_BGSK, value_BGTK), dim=2)
        self.layers[layer] = key_BGTK, value_BGTK
        return key_BGTK, value_BGTK


class Linear(nn.Linear):
    """Left uninitialised: drawing values that are thrown away costs minutes in a large model."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Left uninitialised."""

    def reset_parameters(self) -> None:
        pass


class Normalise(nn.Module):
    """LayerNorm or RMSNorm over D; RMSNorm has no bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_rms = config.norm is Norm.rmsnorm
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        has_bias = config.bias and not self.is_rms
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if has_bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.is_rms:
            return F.rms_norm(x_BTD, (x_BTD.shape[-1],), self.weight, self.eps)
        return F.layer_norm(x_BTD, (x_BTD.shape[-1],), self.weight, self.bias, self.eps)


# Blocks take tensors, tuples and None: ZeRO-3's hooks look for tensors in arguments of such types only.
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each [T, K]."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.hidden_size // config.num_heads
        self.dropout = config.dropout
        kv_size = self.head_size * (config.num_kv_heads or config.num_heads)
        self.query = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.key = Linear(config.hidden_size, kv_size, bias=config.bias)
        self.value = Linear(config.hidden_size, kv_size, bias=config.bias)
        self.output = Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotation_TK: Rotation | None,
        mask_BNTS: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """`mask_BNTS` is True where a query sees a key (B and N may be 1); None is causal from position 0."""
        query_BNTK, key_BGSK, value_BGSK = (
            project(x_BTD).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if rotation_TK is not None:
            query_BNTK = _rotate(query_BNTK, rotation_TK)
            key_BGSK = _rotate(key_BGSK, rotation_TK)
        if cache is not None:
            key_BGSK, value_BGSK = cache.extend(self.layer, key_BGSK, value_BGSK)
        is_grouped = key_BGSK.shape[1] != query_BNTK.shape[1]
        if is_grouped and mask_BNTS is not None:
            # With a mask, only the unfused kernel would take grouped heads, at O(T * S) memory.
            groups = query_BNTK.shape[1] // key_BGSK.shape[1]
            key_BGSK, value_BGSK = (x.repeat_interleave(groups, dim=1) for x in (key_BGSK, value_BGSK))
            is_grouped = False
        mixed_BNTK = F.scaled_dot_product_attention(
            query_BNTK,
            key_BGSK,
            value_BGSK,
            attn_mask=mask_BNTS,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask_BNTS is None and query_BNTK.shape[2] > 1,
            enable_gqa=is_grouped,
        )
        return self.output(mixed_BNTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if self.activation is Activation.swiglu:
            self.gate = Linear(config.hidden_size, config.ffn_hidden_size, bias=config.bias)
        self.up = Linear(config.hidden_size, config.ffn_hidden_size, bias=config.bias)
        self.down = Linear(config.ffn_hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.activation is Activation.swiglu:
            x_BTF = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        elif self.activation is Activation.gelu:
            x_BTF = F.gelu(self.up(x_BTD))
        else:
            x_BTF = F.relu(self.up(x_BTD))
        return self.down(x_BTF)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = Normalise(config)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = Normalise(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        rotation_TK: Rotation | None,
        mask_BNTS: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        x_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD), rotation_TK, mask_BNTS, cache))
        return x_BTD + self._drop(self.feed_forward(self.feed_forward_norm(x_BTD)))

    def _drop(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.dropout, self.training)


class Transformer(nn.Module):
    """Tokens to logits. `config` is resolved (no nulls); parameters start uninitialised.

    With `activation_checkpointing`, training keeps each block's input only and recomputes the rest.
    """

    def __init__(self, config: ModelConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        if config.vocab_size is None or config.num_kv_heads is None:
            raise ValueError("model.vocab_size and model.num_kv_heads must be resolved: call resolve_vocab first")
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        if config.positions is Positions.learned:
            self.positions = Embedding(config.max_seq_len, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = Normalise(config)
        if not config.tied_embeddings:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, tokens_BT: Tensor, document_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Logits [B, T, V] in the parameters' type.

        With `document_BT` (see `document_ids`) tokens attend to their own document only. With a cache, the
        tokens follow those that it holds, and are added to it. Raises ValueError past max_seq_len.
        """
        return self.logits(self.hidden(tokens_BT, document_BT, cache))

    def hidden(
        self, tokens_BT: Tensor, document_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """What the head reads, [B, T, D]: `forward` without the product with the vocabulary."""
        start = cache.length if cache is not None else 0
        end = start + tokens_BT.shape[1]
        if end > self.config.max_seq_len:
            raise ValueError(f"a row of {end} tokens is longer than model.max_seq_len={self.config.max_seq_len}")
        position_T = torch.arange(start, end, device=tokens_BT.device)
        x_BTD = self.embedding(tokens_BT)
        rotation_TK = None
        if self.config.positions is Positions.learned:
            x_BTD = x_BTD + self.positions(position_T)
        else:
            rotation_TK = _rotation(position_T, self.config, x_BTD.dtype)
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        mask_BNTS = _mask(position_T, document_BT, cache)
        shared = (rotation_TK, mask_BNTS, cache)
        for block in self.blocks:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, *shared, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, *shared)
        if cache is not None:
            cache.length = end
        return self.norm(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The head: [B, T, V]."""
        if self.config.tied_embeddings:
            return F.linear(x_BTD, self.embedding.weight)
        return self.head(x_BTD)


def _mask(position_T: Tensor, document_BT: Tensor | None, cache: KeyValueCache | None) -> Tensor | None:
    """Which keys each query sees, where plain causal attention from position 0 does not say it."""
    if document_BT is not None:
        if cache is not None:
            raise ValueError("documents of a row and a cache can't be combined: a cache holds one document")
        same_BTS = document_BT[:, :, None] == document_BT[:, None, :]
        return (same_BTS & (position_T[:, None] >= position_T))[:, None]
    if cache is not None and cache.length > 0 and len(position_T) > 1:
        key_position_S = torch.arange(cache.length + len(position_T), device=position_T.device)
        return (position_T[:, None] >= key_position_S)[None, None]
    return None


def _rotation(position_T: Tensor, config: ModelConfig, dtype: torch.dtype) -> Rotation:
    """Cosines and sines [T, K], computed in fp32: in bf16 neighbouring positions would share an angle."""
    head_size = config.hidden_size // config.num_heads
    exponent = torch.arange(0, head_size, 2, device=position_T.device, dtype=torch.float32) / head_size
    angle_TK = (position_T[:, None].float() * config.rope_theta**-exponent).repeat(1, 2)
    return angle_TK.cos().to(dtype), angle_TK.sin().to(dtype)


def _rotate(x_BNTK: Tensor, rotation_TK: Rotation) -> Tensor:
    """Rotate the pairs (k, k + K/2): the layout of Llama's published weights."""
    cos_TK, sin_TK = rotation_TK
    first, second = x_BNTK.chunk(2, dim=-1)
    return x_BNTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK
