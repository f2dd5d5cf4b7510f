"""How a process that may have spoken to Ray ends: its Python hooks run, the destructors of C++ do not."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from orchestrator.errors import EXIT_FAILED


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what `main` returns; called before anything else registers hooks.

    Ray's statistics thread lives on after `ray.shutdown()` and takes a lock that exit() has destroyed: under load
    the driver of a finished run was seen to end with SIGSEGV, which SLURM would take for a failed job.
    """
    code = EXIT_FAILED

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
                stream.flush()
        os._exit(code)

    atexit.register(end)  # the first of all hooks is the last to run
    code = main()
    sys.exit(code)
