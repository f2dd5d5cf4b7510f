"""What a model weighs before it exists: logical tensors, parameters, FLOPs. Plan half: stdlib only."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from model.config import Activation, ModelConfig, Norm, Positions

VOCAB_MULTIPLE = 64
"""A vocabulary is padded up to a multiple of this: tensor cores want it, and it splits over many ranks."""


def resolve_vocab(config: ModelConfig, tokenizer_vocab_size: int | None) -> ModelConfig:
    """A copy with no nulls: vocab_size from the tokenizer (8,000 -> 8,000; 8,001 -> 8,064), num_kv_heads.

    Raises ValueError where neither names a vocabulary, or the model's is smaller than the tokenizer's.
    """
    vocab_size = config.vocab_size
    if vocab_size is None:
        if tokenizer_vocab_size is None:
            raise ValueError(
                "model.vocab_size=null takes the tokenizer's vocabulary, but no prepared data names one; "
                "set model.vocab_size or data.path"
            )
        vocab_size = -(-tokenizer_vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    elif tokenizer_vocab_size is not None and vocab_size < tokenizer_vocab_size:
        raise ValueError(
            f"model.vocab_size={vocab_size} is smaller than the tokenizer's vocabulary of "
            f"{tokenizer_vocab_size}; use null or at least {tokenizer_vocab_size}"
        )
    num_kv_heads = config.num_heads if config.num_kv_heads is None else config.num_kv_heads
    return replace(config, vocab_size=vocab_size, num_kv_heads=num_kv_heads)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Logical tensors of a resolved model: name -> shape, in the order of the network's `named_parameters`.

    Tied embeddings count once: the head then has no tensor of its own.
    """
    vocab_size = _vocab_size(config)
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocab_size, hidden)}
    if config.positions is Positions.learned:
        shapes["positions.weight"] = (config.max_seq_len, hidden)
    for layer in range(config.num_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in _block_shapes(config).items()}
    shapes |= _norm_shapes("norm", config)
    if not config.tied_embeddings:
        shapes["head.weight"] = (vocab_size, hidden)
    return shapes


def shape_problems(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps tensors of these shapes from being `config`'s weights: one clause each, none if they fit."""
    wanted = parameter_shapes(config)
    problems = [f"{name} is missing" for name in wanted if name not in shapes]
    problems += [f"{name} is not part of the model" for name in shapes if name not in wanted]
    problems += [
        f"{name} has shape {list(shapes[name])}, the model needs {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    return problems


def num_parameters(config: ModelConfig) -> int:
    """Distinct trainable parameters of a resolved model (tied ones once)."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Floating-point operations of one token's forward and backward pass, in rows of `seq_len` tokens.

    6 per parameter that takes part in a matrix product (the head does, looking up an embedding does not),
    and 12 * layers * hidden * seq_len for attention: PaLM, appendix B (arXiv 2204.02311). As there, the
    causal half of the attention matrix is counted in full and recomputation is not counted.
    """
    blocks = config.num_layers * sum(prod(shape) for shape in _block_shapes(config).values() if len(shape) == 2)
    head = _vocab_size(config) * config.hidden_size
    return 6 * (blocks + head) + 12 * config.num_layers * config.hidden_size * seq_len


def _vocab_size(config: ModelConfig) -> int:
    if config.vocab_size is None:
        raise ValueError("model.vocab_size is not resolved yet: call resolve_vocab first")
    return config.vocab_size


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    num_kv_heads = config.num_heads if config.num_kv_heads is None else config.num_kv_heads
    kv_size = hidden // config.num_heads * num_kv_heads
    shapes = _norm_shapes("attention_norm", config)
    shapes |= _linear_shapes("attention.query", hidden, hidden, config)
    shapes |= _linear_shapes("attention.key", kv_size, hidden, config)
    shapes |= _linear_shapes("attention.value", kv_size, hidden, config)
    shapes |= _linear_shapes("attention.output", hidden, hidden, config)
    shapes |= _norm_shapes("feed_forward_norm", config)
    if config.activation is Activation.swiglu:
        shapes |= _linear_shapes("feed_forward.gate", ffn, hidden, config)
    shapes |= _linear_shapes("feed_forward.up", ffn, hidden, config)
    shapes |= _linear_shapes("feed_forward.down", hidden, ffn, config)
    return shapes


def _linear_shapes(name: str, rows: int, columns: int, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    if config.bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes


def _norm_shapes(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (config.hidden_size,)}
    if config.norm is Norm.layernorm and config.bias:
        shapes[f"{name}.bias"] = (config.hidden_size,)
    return shapes
