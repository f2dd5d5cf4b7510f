"""What a disk may hold after a power cut: the model of ext4 (and weaker than it) that the crash tests assume.

- A file's bytes are durable once the file was fsynced. Bytes written since may be on the disk, missing (the file is
  shorter, or has zeros there) or torn at any byte, each sector of 512 bytes on its own and in any order. A file may
  be longer than the bytes that reached it.
- A folder's entries are durable once the folder was fsynced. Creates, links, renames, unlinks and mkdirs since may
  have reached the disk or not, in any order and independently of each other and of the files' bytes: weaker than
  ext4's journal, which keeps their order, and than its habit of making a file's own entry durable at its fsync.
- One rename is atomic: both of its entries or neither. So is one link. A folder whose entry is lost is lost with all
  in it.
- What was durable stays as it was: sectors don't rot here (byte flips are another test), and fsync tells the truth.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

SECTOR_BYTES = 512


@dataclass
class Inode:
    durable: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """(offset, bytes), not yet fsynced."""

    def current(self) -> bytes:
        return _written(self.durable, self.writes)


@dataclass
class Folder:
    durable: dict[str, "Inode | Folder"] = field(default_factory=dict)
    changes: list[dict[str, "Inode | Folder | None"]] = field(default_factory=list)
    """Each one atomic, not yet fsynced: name -> what it means from then on, None for nothing."""

    def current(self) -> dict[str, "Inode | Folder"]:
        return _changed(self.durable, self.changes)


class Disk:
    """The operations of `disk_recorder`, replayed."""

    def __init__(self, folder: Path) -> None:
        """Begins with what is in `folder`, all of it durable."""
        self.root = _durable(folder)

    def do(self, operation: list) -> None:
        name, *arguments = operation
        if name == "returned":
            return
        parent, entry = self._parent(arguments[0])
        match name:
            case "create":
                parent.changes.append({entry: Inode()})
            case "mkdir":
                parent.changes.append({entry: Folder()})
            case "write":
                parent.current()[entry].writes.append((arguments[1], bytes.fromhex(arguments[2])))
            case "fsync":
                inode = parent.current()[entry]
                inode.durable, inode.writes = inode.current(), []
            case "fsync_folder":
                folder = self.root if arguments[0] == "." else parent.current()[entry]
                folder.durable, folder.changes = folder.current(), []
            case "rename" | "link":
                target, target_entry = self._parent(arguments[1])
                assert target is parent, "between folders a rename has two entries to make durable"
                change = {target_entry: parent.current()[entry]}
                parent.changes.append(change | ({entry: None} if name == "rename" else {}))
            case "unlink" | "rmdir":
                parent.changes.append({entry: None})
            case _:
                raise AssertionError(f"{name} has no model")

    def current(self) -> dict[str, bytes]:
        """What a reader sees before any crash: path -> bytes."""
        return dict(_files(self.root, lambda folder: folder.current(), lambda inode: inode.current()))

    def crashed(self, rng: random.Random) -> dict[str, bytes]:
        """One of the states that a crash at this moment may leave."""
        survives = rng.choice([0.0, 1.0, 0.5, 0.5, rng.random()])
        bytes_of: dict[int, bytes] = {}

        def entries(folder: Folder) -> dict[str, Inode | Folder]:
            return _changed(folder.durable, [change for change in folder.changes if rng.random() < survives])

        def content(inode: Inode) -> bytes:
            # Two names of one file show the same bytes.
            if id(inode) not in bytes_of:
                bytes_of[id(inode)] = _torn(inode, survives, rng)
            return bytes_of[id(inode)]

        return dict(_files(self.root, entries, content))

    def _parent(self, path: str) -> tuple[Folder, str]:
        *folders, entry = PurePosixPath(path).parts or (".",)
        found = self.root
        for name in folders:
            found = found.current()[name]
        return found, entry


def write_state(files: dict[str, bytes], folder: Path) -> None:
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def read_state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _durable(folder: Path) -> Folder:
    entries = {
        path.name: _durable(path) if path.is_dir() else Inode(durable=path.read_bytes()) for path in folder.iterdir()
    }
    return Folder(durable=entries)


def _changed(entries: dict, changes: list[dict]) -> dict:
    changed = dict(entries)
    for change in changes:
        for name, meaning in change.items():
            if meaning is None:
                changed.pop(name, None)
            else:
                changed[name] = meaning
    return changed


def _written(data: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(data)
    for offset, piece in writes:
        content.extend(bytes(max(0, offset + len(piece) - len(content))))
        content[offset : offset + len(piece)] = piece
    return bytes(content)


def _torn(inode: Inode, survives: float, rng: random.Random) -> bytes:
    if not inode.writes:
        return inode.durable
    final = inode.current()
    content = bytearray(_written(inode.durable, []).ljust(len(final), b"\0"))
    for start in range(0, len(final), SECTOR_BYTES):
        end = min(start + SECTOR_BYTES, len(final))
        if rng.random() < survives:
            # All of the sector, or (half the time, where not everything survives) a torn one.
            stop = end if survives == 1.0 or rng.random() < 0.5 else rng.randint(start, end)
            content[start:stop] = final[start:stop]
    if rng.random() < 0.5 and survives < 1.0:
        del content[rng.randint(len(inode.durable), len(final)) :]
    return bytes(content)


def _files(folder: Folder, entries, content, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for name, meaning in entries(folder).items():
        if isinstance(meaning, Folder):
            yield from _files(meaning, entries, content, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", content(meaning)
