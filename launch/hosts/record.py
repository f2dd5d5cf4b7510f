"""What `phalanx cluster up` was asked for and what it has started, as values and as a file. Plan half."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.errors import ConfigError

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_\[][A-Za-z0-9_.:\[\]-]*")
"""As ssh takes it; never what ssh would read as an option."""
_SIZES = ("cpus", "gpus")


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    name: str
    """As ssh takes it."""
    cpus: int | None = None
    """null: all that the machine has."""
    gpus: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The program that holds a host's Ray. Its pid and its birth name one process for good."""

    pid: int
    born_s: float
    folder: str
    """Its private folder on that host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterRecord:
    name: str
    mark: str
    """In the environment of every process of this cluster, and of no other."""
    hosts: tuple[Host, ...]
    """The head first."""
    ssh: tuple[str, ...]
    """The ssh command and its options."""
    python: str
    address: str | None = None
    """HOST:PORT; None until the cluster is up."""
    started: dict[str, Started]
    """By host; empty until the cluster is up."""


def parse_hosts(lines: Sequence[str], *, where: str) -> list[Host]:
    """Lines `HOST [cpus=N] [gpus=N]`, `#` begins a comment. Raises ConfigError with every problem.

    `where` stands before a line's number in a sentence: `hosts.txt, line`.
    """
    found: list[Host] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        sizes: dict[str, int] = {}
        wrong = list(_wrong_words(words[1:], sizes))
        if not _HOST.fullmatch(words[0]):
            wrong.insert(0, f"{words[0]} is not a host's name")
        problems += [f"{where} {number}: {problem}; write it as in node1 cpus=16 gpus=8" for problem in wrong]
        found.append(Host(name=words[0], cpus=sizes.get("cpus"), gpus=sizes.get("gpus")))
    names = [host.name for host in found]
    problems += [f"{name} is named twice; once is enough" for name in sorted(set(names)) if names.count(name) > 1]
    if not found:
        problems.append("no host is named; write one a line, the head first")
    if problems:
        raise ConfigError(*problems)
    return found


def _wrong_words(words: Sequence[str], sizes: dict[str, int]) -> Iterator[str]:
    for word in words:
        key, _, value = word.partition("=")
        if key in _SIZES and value.isdecimal() and (int(value) or key == "gpus"):
            sizes[key] = int(value)
        else:
            yield f"{word} is not cpus=N or gpus=N"


def name_problem(name: str) -> str | None:
    if _NAME.fullmatch(name):
        return None
    return f"--name {name!r} is not a name; use letters, digits, '.', '_' and '-', at most 40"
