"""Loaded by every Python that starts with this folder on its PYTHONPATH: signals after which a bit of a rank's memory
is not what it was, as after a fault that no hardware reported.

SIGUSR1: one of a parameter that it computes with, before its next forward pass.
SIGUSR2: one of an optimizer's fp32 masters, after its next update and before anybody looks.
"""

import signal

PENDING = set()


def flip(tensor):
    import torch

    words = tensor.detach().view(-1).view(torch.int32)
    words[words.numel() // 2] ^= 1 << 12


def flip_a_parameter(*_):
    from model.engine import Engine

    PENDING.add("parameter")
    if hasattr(Engine, "_losses_sum_unharmed"):
        return
    Engine._losses_sum_unharmed = Engine._losses_sum

    def losses_sum(engine, micro_batch):
        if "parameter" in PENDING:
            PENDING.discard("parameter")
            flip(max(engine._engine.module.parameters(), key=lambda parameter: parameter.numel()).data)
        return engine._losses_sum_unharmed(micro_batch)

    Engine._losses_sum = losses_sum


def flip_a_master(*_):
    from model.engine import Engine

    PENDING.add("master")
    if hasattr(Engine, "_train_step_unharmed"):
        return
    Engine._train_step_unharmed = Engine.train_step

    def train_step(engine, *arguments):
        result = engine._train_step_unharmed(*arguments)
        if "master" in PENDING:
            PENDING.discard("master")
            flip(engine.state_parts()[0].values)
        return result

    Engine.train_step = train_step


signal.signal(signal.SIGUSR1, flip_a_parameter)
signal.signal(signal.SIGUSR2, flip_a_master)
