"""How a process that may have spoken to Ray ends: its Python hooks run, the destructors of C++ do not."""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from orchestrator.errors import EXIT_FAILED


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what `main` returns; hooks that were registered before this call do not run.

    Ray's statistics thread lives on after `ray.shutdown()` and takes a lock that exit() has destroyed: under load
    the driver of a finished run was seen to end with SIGSEGV, which SLURM would take for a failed job.
    """
    code = EXIT_FAILED

    def end() -> None:
        is_said = True
        for stream in (sys.stdout, sys.stderr):
            try:
                with contextlib.suppress(BrokenPipeError, ValueError):  # whoever read it has gone, or it is closed
                    stream.flush()
            except OSError:
                is_said = False
        os._exit(code if is_said else code or EXIT_FAILED)

    atexit.register(end)  # the first of all hooks is the last to run
    try:
        code = main()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        raise
    sys.exit(code)
