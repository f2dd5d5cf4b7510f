"""Small models for the tests of model/."""

import torch

from model.config import Activation, ModelConfig, Norm, Positions
from model.initial import initialise
from model.transformer import Transformer


def small_config(**changes: object) -> ModelConfig:
    """GPT-shaped, 2 layers, 64 tokens, rows of up to 16; resolved."""
    fields: dict[str, object] = {
        "name": "small",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "ffn_hidden_size": 48,
        "max_seq_len": 16,
        "positions": Positions.learned,
        "norm": Norm.layernorm,
        "activation": Activation.gelu,
        "bias": True,
        "tied_embeddings": True,
        "init_std": 0.2,
    }
    return ModelConfig(**(fields | changes))


LLAMA = {
    "positions": Positions.rotary,
    "norm": Norm.rmsnorm,
    "activation": Activation.swiglu,
    "bias": False,
    "tied_embeddings": False,
    "num_kv_heads": 2,
}


def small_model(config: ModelConfig, seed: int = 1) -> Transformer:
    """Seeded weights; norms and biases are moved off their ones and zeros so that each one matters."""
    model = Transformer(config)
    initialise(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.3, generator=generator))
    return model.eval()


def random_tokens(*shape: int, seed: int = 0, vocab_size: int = 64) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))
