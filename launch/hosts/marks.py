"""Processes of one cluster on this host, found without their parent."""

import contextlib
import os
from collections.abc import Iterator

import psutil

MARK = "PHALANX_CLUSTER"
TITLE = "ray::"


def processes_of(mark: str, folder: str) -> list[psutil.Process]:
    """Those with the mark in their environment, Ray's with a file open in the cluster's folder, and their children.

    Mine only: of others nothing can be read. Ray's agents write their title over their environment, so the mark alone
    would miss them. A driver that has joined has files open there, too, and is nobody's to end.
    """
    found = {process for process in psutil.process_iter() if _is_of(process, mark, folder)}
    found |= {child for process in found for child in _descendants(process)}
    return [process for process in found if process.pid != os.getpid()]


def _is_of(process: psutil.Process, mark: str, folder: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        if process.environ().get(MARK) == mark:
            return True
        is_rays = process.name().startswith(TITLE)
        return bool(folder) and is_rays and any(file.path.startswith(f"{folder}/") for file in process.open_files())
    return False


def _descendants(process: psutil.Process) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        yield from process.children(recursive=True)
