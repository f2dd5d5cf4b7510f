"""Attempts claimed in the checkpoint store: of two live copies of a run, only the one that started last may commit.

Each attempt puts `attempts/attempt_00003.json` exclusively. A commit looks for a newer claim right before its marker
is put. What is left is the time between that look and the put: an older attempt may then still add one checkpoint
after a newer one has claimed. It does no harm: payload names carry the attempt, so nothing of the newer one is
touched; the marker's name is claimed exclusively, so it can't replace a newer one's; and what is added is a whole
checkpoint of the same run that the newer attempt could have found a moment earlier. The older one's next commit is
refused.
"""

import json
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass

from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError, FencedError, StoreError

FOLDER = "attempts"
_NAME = re.compile(r"attempt_(\d{5,})\.json")


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt's right to commit."""

    attempt: int
    content: bytes
    """The file in the store: who it is, and a token that no other claim has."""

    @property
    def path(self) -> str:
        return f"{FOLDER}/attempt_{self.attempt:05d}.json"


def new_claim(attempt: int, run_id: str) -> Claim:
    """Not yet in any store: `take` puts it there."""
    facts = {
        "run_id": run_id,
        "attempt": attempt,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "token": secrets.token_hex(8),
    }
    return Claim(attempt, (json.dumps(facts, sort_keys=True) + "\n").encode())


def take(store: Store, claim: Claim) -> bool:
    """Put the claim; False where another one has its number."""
    return store.create_exclusive(claim.path, claim.content) or store.read(claim.path) == claim.content


def newest_attempt(store: Store) -> int:
    """The newest attempt claimed in the store, 0 where there is none."""
    # A long run has thousands, and they are asked for at every commit: of the longest names the last is the newest.
    names = list(reversed(store.list(FOLDER)))
    names.sort(key=len, reverse=True)
    for name in names:
        if match := _NAME.fullmatch(name):
            return int(match.group(1))
    return 0


def refuse_if_fenced(store: Store, attempt: int, claim: Claim | None = None) -> None:
    """Raises FencedError where a newer attempt than `attempt` has claimed the store, or another owns its number.

    A `claim` that could not be put when the attempt began (the store did not answer) is put now.
    """
    newest = newest_attempt(store)
    if newest > attempt:
        raise FencedError(_sentence(store, attempt, newest))
    if claim is not None and not take(store, claim):
        raise FencedError(_sentence(store, attempt, attempt))


def _sentence(store: Store, attempt: int, newest: int) -> str:
    path = Claim(newest, b"").path
    try:
        facts = json.loads(store.read(path))
        who = f"on {facts['host']}, pid {facts['pid']}"
    except StoreError:
        raise
    except (CheckpointError, ValueError, KeyError, TypeError):
        who = f"see {store.where(path)}"
    other = f"attempt {newest} ({who})" if newest != attempt else f"another attempt {newest} ({who})"
    return (
        f"attempt {attempt} may not commit to {store.where('')} any more: {other} has taken the run over; "
        "nothing was damaged, and the run goes on there"
    )
