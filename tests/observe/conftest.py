"""A temporary folder that must be empty at a test's end."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of this process and those that it starts. Its path is short: sockets."""
    folder = Path(tempfile.mkdtemp(prefix="phx-t-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    left = [*folder.rglob("*")]
    shutil.rmtree(folder)
    assert left == []
