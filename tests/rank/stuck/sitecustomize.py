"""Loaded by every Python that starts with this folder on its PYTHONPATH: signals that make a rank hang for ever.

SIGUSR1: its main thread waits for a mutex that nobody opens, and holds the GIL.
SIGUSR2: its loader waits, in its next read, for what never comes.
SIGURG: it waits for a message that no rank sends.
"""

import ctypes
import signal
import threading


def hold_the_gil(*_: object) -> None:
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def block_the_loader(*_: object) -> None:
    from orchestrator.data.shards import TokenReader

    def wait_for_ever(*_: object) -> None:
        threading.Event().wait()

    TokenReader.read_into = wait_for_ever


def wait_for_a_message(*_: object) -> None:
    import torch

    torch.distributed.recv(torch.zeros(1), tag=99)


signal.signal(signal.SIGUSR1, hold_the_gil)
signal.signal(signal.SIGUSR2, block_the_loader)
signal.signal(signal.SIGURG, wait_for_a_message)
