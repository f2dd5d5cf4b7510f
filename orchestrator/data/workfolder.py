"""What lies in `data.path` while data is prepared, and what may be prepared there.

prepare.json (what is prepared from what), tokenizer.json, the shards, and a record of each finished unit in
units/. manifest.json comes last; then prepare.json and units/ go. prepare.lock is there while somebody works.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator import holding
from orchestrator.data import files
from orchestrator.data.manifest import FILE_NAME, Manifest
from orchestrator.data.shards import check_shards, read_manifest
from orchestrator.data.sources import SourceFile
from orchestrator.data.units import UNITS_FOLDER
from orchestrator.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
WORK_FILE = "prepare.json"
LOCK_FILE = "prepare.lock"
_SHARD_NAME = re.compile(r"(train|validation)_\d{5,}\.bin(\.tmp)?")
_MAY_CHANGE = ("data.on_bad", "num_files", "num_bytes", "files_fingerprint")
"""While unfinished: mending a bad file or leaving it out needs no new folder, its units are done again."""


def refuse_sources_inside(target: str, sources: Sequence[SourceFile]) -> None:
    """Raises DataError where the prepared data would lie among the files it is made from."""
    filesystem, path = files.open_filesystem(target)
    folder = path if files.local_path(target) is not None else filesystem.unstrip_protocol(path)
    inside = [file.url for file in sources if file.url.startswith(folder.rstrip("/") + "/")]
    if inside:
        raise DataError(
            f"data.path={target} holds {len(inside):,} of the source's own files ({inside[0]}); "
            "give the prepared data a folder of its own"
        )


def finished_manifest(target: str, identity: dict[str, Any]) -> Manifest | None:
    """The manifest where the work is done. Raises DataError where the folder holds other or damaged data."""
    if files.file_bytes(files.join(target, FILE_NAME)) is None:
        return None
    manifest = read_manifest(target)
    _refuse_other(target, "data", manifest.source, identity)
    check_shards(target, manifest)
    return manifest


@contextmanager
def held(target: str) -> Iterator[None]:
    """Nobody else prepares in that folder meanwhile: two would write into each other's files.

    On an object store nothing is held: there an object appears whole, and two make the same. Raises DataError.
    """
    folder = files.local_path(target)
    if folder is None:
        yield
        return
    files.make_folder(target)
    with files.explained_write(target):
        descriptor = _locked(folder / LOCK_FILE, target)
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, target: str) -> int:
    """Descriptor of the lock file; the lock goes with it, however this process ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            holding.lock(descriptor)
        except holding.HeldError as holder:
            os.close(descriptor)
            raise DataError(
                f"data.path={target} is being prepared already ({holder}); wait for it, or choose another data.path"
            ) from None
        except OSError:
            return descriptor  # a file system without locks
        with suppress(FileNotFoundError):  # its last holder has taken it away meanwhile
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                holding.sign(descriptor)
                return descriptor
        os.close(descriptor)


def begin(target: str, identity: dict[str, Any]) -> None:
    """Make the folder and note what is prepared in it, or find that it was begun. Raises DataError."""
    work_url = files.join(target, WORK_FILE)
    if files.file_bytes(work_url) is not None:
        try:
            held = json.loads(files.read_bytes(work_url))
        except ValueError as error:
            raise DataError(f"{work_url} is not what phalanx wrote ({error}); remove {target}") from error
        fixed = {key: value for key, value in identity.items() if key not in _MAY_CHANGE}
        _refuse_other(target, "unfinished data", held, fixed)
    elif files.file_bytes(files.join(target, TOKENIZER_FILE)) is not None:
        raise DataError(
            f"data.path={target} has a {TOKENIZER_FILE} that prepare did not write; choose another data.path"
        )
    files.make_folder(files.join(target, UNITS_FOLDER))
    files.write_atomically(work_url, (json.dumps(identity, indent=2) + "\n").encode())


def commit(target: str, manifest: Manifest) -> None:
    """Write the manifest, which makes the data exist, then remove what only the work needed."""
    files.write_atomically(files.join(target, FILE_NAME), manifest.to_json().encode())
    _remove_shards(target, keep={shard.file for shard in (*manifest.train.shards, *manifest.validation.shards)})
    _remove_notes(target)


def abandon(target: str) -> None:
    """Remove all that was written: it turned out to be nothing."""
    _remove_shards(target, keep=set())
    files.remove_file(files.join(target, TOKENIZER_FILE))
    _remove_notes(target)


def _remove_shards(target: str, keep: set[str]) -> None:
    """A source that changed during the work may have been cut otherwise before, into other shards."""
    for name in files.list_names(target):
        if _SHARD_NAME.fullmatch(name) and name not in keep:
            files.remove_file(files.join(target, name))


def _remove_notes(target: str) -> None:
    files.remove_folder(files.join(target, UNITS_FOLDER))
    files.remove_file(files.join(target, WORK_FILE))


def _refuse_other(target: str, what: str, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    problems = [
        f"data.path={target} holds {what} prepared with {key}={held.get(key)}, now it is {key}={value}; "
        "choose another data.path, or remove that folder to prepare it anew"
        for key, value in wanted.items()
        if held.get(key) != value
    ]
    if problems:
        raise DataError(*problems)
