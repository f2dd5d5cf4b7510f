import numpy as np
import torch
from small_models import LLAMA, random_tokens, small_config, small_model

from model.sizing import parameter_shapes, shape_problems
from model.weights import load_transformer


def test_loads_flat_float32_values_by_name():
    config = small_config(**LLAMA)
    source = small_model(config)
    flat = {name: p.detach().numpy().reshape(-1) for name, p in source.named_parameters()}
    model = load_transformer(config, flat.__getitem__)
    tokens = random_tokens(1, 9)
    assert not model.training
    assert torch.equal(model(tokens), source(tokens))
    flat["norm.weight"] = np.zeros(32, np.float32)
    assert not torch.equal(load_transformer(config, flat.__getitem__)(tokens), source(tokens))


def test_names_every_tensor_that_does_not_fit():
    config = small_config()
    shapes = parameter_shapes(config)
    assert shape_problems(config, shapes) == []
    del shapes["norm.bias"]
    shapes |= {"embedding.weight": (65, 32), "head.weight": (64, 32)}
    assert shape_problems(config, shapes) == [
        "norm.bias is missing",
        "head.weight is not part of the model",
        "embedding.weight has shape [65, 32], the model needs [64, 32]",
    ]
