"""What lies in `data.path` while data is prepared, and what may be prepared there.

prepare.json (what is prepared from what), tokenizer.json, the shards, and a record of each finished unit in
units/. manifest.json comes last; then prepare.json and units/ go.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from orchestrator.data import files
from orchestrator.data.manifest import FILE_NAME, Manifest
from orchestrator.data.shards import check_shards, read_manifest
from orchestrator.data.sources import SourceFile
from orchestrator.data.units import UNITS_FOLDER
from orchestrator.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
WORK_FILE = "prepare.json"
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
