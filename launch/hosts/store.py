"""Where a cluster made by ssh is recorded: a folder of the user's own, with the token that its Ray asks for."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from launch.hosts.record import ClusterRecord
from launch.suggest import not_known
from orchestrator.codec import decode, encode
from orchestrator.errors import ConfigError

ROOT = Path("~/.phalanx/clusters")


class ClusterFolder:
    """`record` is written before anything is started, so that whatever dies, `down` finds what there may be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ROOT.expanduser() / name

    @property
    def token(self) -> Path:
        return self.path / "token"

    @property
    def _record(self) -> Path:
        return self.path / "cluster.json"

    def create(self, record: ClusterRecord, token: str) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.token.touch(mode=0o600)
        self.token.write_text(token)
        self.write(record)

    def write(self, record: ClusterRecord) -> None:
        temporary = self.path / "cluster.json.tmp"
        temporary.write_text(json.dumps(encode(record), indent=2) + "\n")
        temporary.replace(self._record)

    def read(self) -> ClusterRecord | None:
        """None where there is no such cluster. Raises ConfigError where the record can't be read."""
        try:
            return decode(ClusterRecord, json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self._record} can't be read ({error}); restore it, or remove the folder") from error

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One `up` or `down` of a name at a time. Raises ConfigError where another is at work."""
        lock = self.path.with_name(f".{self.name}.lock")
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ConfigError(
                f"another phalanx cluster is at work on {self.name}; wait for it, or take another --name"
            ) from None
        finally:
            os.close(descriptor)


def names() -> list[str]:
    return sorted(path.parent.name for path in ROOT.expanduser().glob("*/cluster.json"))


def find(name: str) -> tuple[ClusterFolder, ClusterRecord]:
    """Raises ConfigError where no cluster of that name is recorded."""
    folder = ClusterFolder(name)
    record = folder.read()
    if record is None and names():
        raise ConfigError(not_known(f"cluster {name}", name, names()))
    if record is None:
        raise ConfigError("no cluster is up; to make one: phalanx cluster up HOST ...")
    return folder, record
