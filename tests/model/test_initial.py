import subprocess
import sys
from math import sqrt

import pytest
import torch
from small_models import LLAMA, small_config

from model.initial import initial_value, initialise
from model.transformer import Transformer


def test_values_depend_on_seed_and_name_only():
    config = small_config(hidden_size=32)
    name, shape = "blocks.1.attention.query.weight", (32, 32)
    first = initial_value(name, shape, config, seed=7)
    torch.rand(1000)  # the global stream has no part in it
    assert torch.equal(initial_value(name, shape, config, seed=7), first)
    assert not torch.equal(initial_value(name, shape, config, seed=8), first)
    assert not torch.equal(initial_value("blocks.0.attention.query.weight", shape, config, seed=7), first)
    assert first.dtype is torch.float32 and first.device.type == "cpu"


def test_another_process_draws_the_same():
    """Python's own hash of a string differs between processes."""
    code = (
        "from model.initial import initial_value; from small_models import small_config;"
        "print(initial_value('embedding.weight', (64, 32), small_config(), 3).double().sum().item())"
    )
    here = initial_value("embedding.weight", (64, 32), small_config(), 3).double().sum().item()
    path = ":".join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) == here


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_gpt2_style_values(options):
    config = small_config(**options, hidden_size=128, ffn_hidden_size=256, num_layers=8, init_std=0.02)
    model = Transformer(config)
    initialise(model, config, seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            std = 0.02 / sqrt(16) if residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * std / sqrt(parameter.numel()), name


def test_construction_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Transformer(small_config())
    assert torch.equal(torch.get_rng_state(), before)
