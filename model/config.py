"""What a model is: the fields a person chooses. Plan half: standard library only."""

from dataclasses import dataclass
from enum import StrEnum


class Positions(StrEnum):
    learned = "learned"
    """One trained vector per position, added to the token embedding (GPT-2, GPT-3)."""
    rotary = "rotary"
    """Queries and keys are rotated by an angle that grows with the position (RoFormer, arXiv 2104.09864)."""


class Norm(StrEnum):
    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


class Activation(StrEnum):
    gelu = "gelu"
    relu = "relu"
    swiglu = "swiglu"
    """Gated: silu(x W1) * (x W3), so the feed-forward has three matrices (arXiv 2002.05202)."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only Transformer."""

    name: str
    """The name of the choice, `gpt_125m`; part of the default run id."""
    vocab_size: int | None
    """Rows of the token embedding; null takes the tokenizer's vocabulary, padded up to a multiple of 64."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    """Key and value heads (grouped-query attention, arXiv 2305.13245); null means num_heads."""
    ffn_hidden_size: int
    max_seq_len: int
    """Longest row the model accepts, in tokens; sizes the learned positions."""
    positions: Positions
    norm: Norm
    activation: Activation
    bias: bool
    """Biases in the linear layers (and in LayerNorm)."""
    tied_embeddings: bool
    """The output head shares the token embedding's matrix."""
    dropout: float = 0.0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    init_std: float = 0.02
    """Standard deviation of the initial weights; residual projections get init_std / sqrt(2 * num_layers)."""
