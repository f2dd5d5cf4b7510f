"""Fill a Transformer with the fp32 masters of a checkpoint, or of anything that holds its logical tensors."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from model.config import ModelConfig
from model.sizing import parameter_shapes
from model.transformer import Transformer

Fetch = Callable[[str], np.ndarray]
"""Name of a logical tensor -> its float32 values, flat."""


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


@torch.no_grad()
def load_transformer(config: ModelConfig, fetch: Fetch, device: torch.device | str = "cpu") -> Transformer:
    """A Transformer in fp32 on `device`, in evaluation mode, one tensor in transit at a time.

    `config` is resolved, and `fetch` knows every tensor of it (see `shape_problems`).
    """
    with torch.device(device):
        model = Transformer(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(fetch(name))).view(parameter.shape))
    return model.eval()
