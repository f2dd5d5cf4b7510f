import itertools
from math import prod

import pytest
import torch
from small_models import LLAMA, small_config

from model.config import Activation, Norm, Positions
from model.sizing import flops_per_token, num_parameters, parameter_shapes, resolve_vocab
from model.transformer import Transformer

ALL_OPTIONS = [
    dict(
        zip(
            ("positions", "norm", "activation", "bias", "tied_embeddings", "num_kv_heads"),
            choice,
            strict=True,
        )
    )
    for choice in itertools.product(Positions, Norm, Activation, (True, False), (True, False), (4, 2, 1))
]


def test_shapes_are_the_networks_for_every_combination_of_options():
    for options in ALL_OPTIONS:
        config = small_config(**options)
        with torch.device("meta"):
            network = {name: tuple(p.shape) for name, p in Transformer(config).named_parameters()}
        assert list(parameter_shapes(config).items()) == list(network.items()), options
        assert num_parameters(config) == sum(prod(shape) for shape in network.values())


def test_gpt2_small_and_llama_1b_have_the_published_sizes():
    gpt2 = small_config(
        vocab_size=50257, hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=12,
        ffn_hidden_size=3072, max_seq_len=1024,
    )  # fmt: skip
    assert num_parameters(gpt2) == 124_439_808
    llama32_1b = small_config(
        **LLAMA | {"num_kv_heads": 8, "tied_embeddings": True},
        vocab_size=128256, hidden_size=2048, num_layers=16, num_heads=32, ffn_hidden_size=8192,
        max_seq_len=131072,
    )  # fmt: skip
    assert num_parameters(llama32_1b) == 1_235_814_400


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_flops_match_what_torch_counts(options):
    from torch.utils.flop_counter import FlopCounterMode

    config, seq_len = small_config(**options), 16
    with torch.device("meta"):
        model = Transformer(config)
        tokens = torch.zeros(1, seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    # Attention is left out: torch counts its fused kernels by other rules than the paper's.
    counts = counter.get_flop_counts()["Global"]
    matrix = sum(n for op, n in counts.items() if "mm" in str(op) and "bmm" not in str(op))
    attention = 12 * config.num_layers * config.hidden_size * seq_len
    assert matrix == seq_len * (flops_per_token(config, seq_len) - attention)


def test_a_null_vocabulary_is_the_tokenizers_padded_to_64():
    config = small_config(vocab_size=None, num_kv_heads=None)
    assert resolve_vocab(config, 8000).vocab_size == 8000
    resolved = resolve_vocab(config, 8001)
    assert (resolved.vocab_size, resolved.num_kv_heads) == (8064, 4)
    assert config.vocab_size is None
    assert resolve_vocab(small_config(vocab_size=10_000), None).vocab_size == 10_000


def test_a_vocabulary_that_does_not_fit_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"model.vocab_size=64 is smaller .* at least 65"):
        resolve_vocab(small_config(vocab_size=64), 65)
    with pytest.raises(ValueError, match=r"set model.vocab_size or data.path"):
        resolve_vocab(small_config(vocab_size=None), None)
    with pytest.raises(ValueError, match="not resolved"):
        parameter_shapes(small_config(vocab_size=None))
