"""The job's srun step with a node program on each node: told and heard through srun's own pipes.

The token travels on srun's stdin to every node: in no argument list, log, environment or file on a shared disk.
"""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence

from launch.job.lines import LineReader, Message, line

END_TIMEOUT_S = 20.0


class NodeStep:
    """Use as a context manager: leaving it ends every node program, and so all that they started."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._srun = subprocess.Popen(
            words, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._srun.stdin is not None and self._srun.stdout is not None
        self._commands = self._srun.stdin
        self.reader = LineReader(self._srun.stdout.fileno())

    def __enter__(self) -> "NodeStep":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def tell(self, message: Message) -> None:
        """To every node; nothing where srun has ended, of which its output tells."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(line(message))

    @property
    def has_ended(self) -> bool:
        return self.reader.is_closed

    def end(self) -> None:
        """srun is ended where a node does not answer any more."""
        self.tell({"op": "end"})
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        try:
            self._srun.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._srun.terminate()  # it kills the step everywhere
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._srun.wait(END_TIMEOUT_S)
        with contextlib.suppress(OSError):
            assert self._srun.stdout is not None
            self._srun.stdout.close()


def job_environment() -> dict[str, str]:
    """Ours without what would point Ray elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
