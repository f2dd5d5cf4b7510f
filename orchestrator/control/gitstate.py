"""Which commit a run was started from: the only file that calls git."""

import subprocess
from pathlib import Path
from typing import Any

TIMEOUT_S = 5.0
"""A repository on a file system that hangs must not keep a run from starting."""


def git_state(folder: Path) -> dict[str, Any]:
    """`commit`, `branch` (None where detached), `is_dirty` and `remote` of the repository that holds `folder`.

    Empty where there is none, or no git. A user or token in the remote's URL is left out. Never raises.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    branch = _git(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    remote = _git(folder, "config", "--get", "remote.origin.url")
    return {
        "commit": commit,
        "branch": branch or None,
        "is_dirty": bool(changes),
        "remote": _without_user(remote) if remote else None,
    }


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _without_user(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
