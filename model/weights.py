"""Fill a Transformer with the fp32 masters of a checkpoint, or of anything that holds its logical tensors."""

from collections.abc import Callable

import numpy as np
import torch

from model.config import ModelConfig
from model.transformer import Transformer

Fetch = Callable[[str], np.ndarray]
"""Name of a logical tensor -> its float32 values, flat."""


@torch.no_grad()
def load_transformer(config: ModelConfig, fetch: Fetch, device: torch.device | str = "cpu") -> Transformer:
    """A Transformer in fp32 on `device`, in evaluation mode, one tensor in transit at a time.

    `config` is resolved, and `fetch` knows every tensor of it (see `sizing.shape_problems`).
    """
    with torch.device(device):
        model = Transformer(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(fetch(name))).view(parameter.shape))
    return model.eval()
