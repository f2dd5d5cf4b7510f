"""ssh: the only file that calls it. One connection runs one of our programs on one host, told and heard in lines."""

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Sequence

from launch.job.lines import LineReader, Message, line

LAST_LINES = 3
CONNECT_TIMEOUT_S = 15
BATCH = (
    *("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6"),
)
"""Never asks a person, never allocates a terminal; a host that falls silent is given up after half a minute."""


def ssh_words(config_file: str | None) -> tuple[str, ...]:
    """The ssh command: what the user's own configuration says of a host counts."""
    return ("ssh", *(("-F", config_file) if config_file else ()), *BATCH)


class Connection:
    """Closing its input is all that ends it in order; secrets go through that input, never into the words."""

    def __init__(self, host: str, ssh: Sequence[str], python: str, module: str) -> None:
        self.host = host
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  read after the end, closed by `close`
        self._process = subprocess.Popen(
            [*ssh, "--", host, shlex.join([python, "-P", "-m", module])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is ours to hand on
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input = self._process.stdin
        self.reader = LineReader(self._process.stdout.fileno())

    def tell(self, message: Message) -> None:
        """Nothing where the connection has ended, of which its output tells."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write(line(message))

    def hang_up(self) -> None:
        """Close the input: a program that is not to stay ends then."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def last_words(self) -> str:
        """What ssh, or the program there, said last; call it once the output is closed."""
        code = self._process.wait()
        self._errors.seek(0)
        said = [text.strip() for text in self._errors.read().decode(errors="replace").splitlines() if text.strip()]
        return " | ".join(said[-LAST_LINES:]) or f"ssh ended with exit code {code}"

    def close(self) -> None:
        """Wait for the end of what `hang_up` ends; twice is harmless."""
        self.hang_up()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def cut(self) -> None:
        """Give the connection up; what is to stay on the host stays."""
        self._process.kill()
        self.close()
