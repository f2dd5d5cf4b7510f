"""Real data, one Ray cluster for all runs that join it, and somebody who types."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hooks.sitecustomize import LIBRARY
from left_behind import SHARED_MEMORY, new_shared_memory
from typed import PHALANX, STARTED_PIDS, Run, SharedRay, Typist, marked_processes, wait_for
from typists import MARK, TRAIN_WORDS, clean_environment, joined_typist

NUM_CPUS = 8


@pytest.fixture(scope="session")
def nothing_left() -> Iterator[None]:
    """After the last test: no process, no shared memory, no Ray folder of what these tests started."""
    shared_memory = {*SHARED_MEMORY.iterdir()}
    yield
    wait_for("the end of every process that these tests started", lambda: not marked_processes(MARK))
    wait_for("an empty /dev/shm", lambda: not new_shared_memory(shared_memory, MARK))
    ray_folders = [path for pid in STARTED_PIDS for path in Path("/tmp").glob(f"phx-ray-{pid}-*")]
    assert ray_folders == []


@pytest.fixture(scope="session")
def shared_ray(nothing_left: None) -> Iterator[SharedRay]:
    folder = Path(tempfile.mkdtemp(prefix="phx-e2e-", dir="/tmp"))
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}
    temporary = {"TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("shared_ray.py")), str(NUM_CPUS), str(folder)],
        env=clean_environment() | authentication | hooked(folder) | temporary,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, f"Ray did not start: exit code {process.wait()}"
        yield SharedRay(address, authentication | temporary | {"RAY_ADDRESS": address})
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        shutil.rmtree(folder)


def hooked(folder: Path) -> dict[str, str]:
    """Environment in which ranks have the hooks of `hooks/`."""
    hooks, library = Path(__file__).parent / "hooks", folder / "leave.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, hooks / "leave.c"], check=True)
    path = os.pathsep.join(filter(None, [str(hooks), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, LIBRARY: str(library)}


@pytest.fixture(scope="session")
def data(nothing_left: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three packages of the standard library, prepared by the verb."""
    library = Path(json.__file__).parent.parent
    source = ",".join(str(library / package / "*.py") for package in ("json", "email", "asyncio"))
    path = tmp_path_factory.mktemp("prepared") / "data"
    words = [f"data.source=[{source}]", f"data.path={path}", "data.vocab_size=400", "data.validation_fraction=0.1"]
    subprocess.run([PHALANX, "prepare", "model=tiny", *words], env=clean_environment(), check=True)
    return path


@pytest.fixture
def typist(tmp_path: Path, data: Path, shared_ray: SharedRay) -> Iterator[Typist]:
    """Types on the shared cluster."""
    typist = joined_typist(tmp_path, data, shared_ray)
    yield typist
    typist.close()


@pytest.fixture
def local_typist(tmp_path: Path, data: Path) -> Iterator[Typist]:
    """Types where there is no Ray yet."""
    typist = Typist(tmp_path, clean_environment(), [*TRAIN_WORDS, f"data.path={data}"])
    yield typist
    typist.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs")


@pytest.fixture(scope="session")
def reference(data: Path, shared_ray: SharedRay, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbed: 2 ranks, ZeRO-2, 60 steps."""
    scratch = tmp_path_factory.mktemp("reference")
    run = Run(scratch / "runs")
    typist = joined_typist(scratch, data, shared_ray)
    try:
        typist.train(run).finish()
    finally:
        typist.close()
    return run
