"""Loaded by every Python that starts with this folder on its PYTHONPATH: ends that no signal of the kernel brings.

LEAVE_SIGNAL ends the process with exit code 0 in C, wherever it is, also inside a collective. RAISE_SIGNAL raises at
the next line of Python.
"""

import ctypes
import os
import signal

LEAVE_SIGNAL = signal.SIGRTMIN + 5
RAISE_SIGNAL = signal.SIGRTMIN + 6
LIBRARY = "PHALANX_TEST_LEAVE"
"""Environment variable: the shared library of leave.c."""


def fail(*_: object) -> None:
    raise RuntimeError("a fault that a test injects")


def install(library: str) -> None:
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(LEAVE_SIGNAL, ctypes.cast(ctypes.CDLL(library).leave, ctypes.c_void_p))
    signal.signal(RAISE_SIGNAL, fail)


if LIBRARY in os.environ:
    install(os.environ[LIBRARY])
