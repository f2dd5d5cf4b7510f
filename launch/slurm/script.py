"""The sbatch script: the named blanks of slurm/job.sbatch filled in, nothing decided. Plan half."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def script_text(
    template: str,
    *,
    directives: Sequence[str],
    setup: Sequence[str],
    environment: Mapping[str, Any],
    command: Sequence[str],
) -> str:
    """The script's text. Only `setup` is read by the shell as it stands; everything else is quoted."""
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    blanks = {
        "directives": "\n".join(f"#SBATCH {directive}" for directive in directives),
        "setup": "\n".join(["# Set-up lines:", *setup, *exports]),
        "command": shlex.join(command),
    }
    # In one pass: what is filled in may hold an @.
    return re.sub("@([a-z]+)@", lambda blank: blanks[blank[1]], template)
