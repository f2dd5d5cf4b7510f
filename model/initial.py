"""Initial weights, seeded by parameter name.

The same for every world size, ZeRO stage and order of construction, because each tensor has a generator of
its own; so a rank may draw any one tensor without drawing the others.
"""

import hashlib
from math import sqrt

import torch
from torch import Tensor, nn

from model.config import ModelConfig


def initial_value(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """A parameter's initial value: fp32 on the CPU.

    As GPT-2: matrices from normal(0, init_std), those that write into the residual stream from
    init_std / sqrt(2 * num_layers), norms 1, biases 0.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    std = config.init_std
    if name.endswith((".attention.output.weight", ".feed_forward.down.weight")):
        std /= sqrt(2 * config.num_layers)
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    # dtype and device are said: ZeRO's construction context changes the defaults.
    value = torch.empty(shape, dtype=torch.float32, device="cpu")
    return value.normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of an unpartitioned model with its initial value."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_value(name, tuple(parameter.shape), config, seed))
