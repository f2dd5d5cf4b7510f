"""NVML's figures through the real pynvml from a library of our own, which is compiled here: there need be no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.rank.gpuhealth import load_nvml

SOURCE = Path(__file__).with_name("fake_nvml.c")
ROOT = Path(__file__).resolve().parent.parent.parent
WHOLE = {
    "sm_clock_mhz": 1980,
    "memory_clock_mhz": 2619,
    "temperature_c": 61,
    "power_mw": 612_500,
    "ecc_corrected": 3,
    "ecc_uncorrected": 0,
    "throttle_reasons": 4,
}
READ = """
import json, sys
from orchestrator.rank.gpuhealth import GpuHealth
health = GpuHealth.open(sys.argv[1])
print(json.dumps(None if health is None else health.read()))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True)
    return folder


def python(script: str, *words: str, library: Path, figures: Path) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(figures), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    path = tmp_path / "gpu"
    write(path, WHOLE)
    return path


def write(path: Path, figures: dict[str, int]) -> None:
    """By rename: a reader never sees half of it."""
    path.with_suffix(".new").write_text("".join(f"{name} {value}\n" for name, value in figures.items()))
    path.with_suffix(".new").replace(path)


def test_every_figure_is_read(library: Path, figures: Path) -> None:
    found = json.loads(python(READ, "GPU-5ee0", library=library, figures=figures))
    assert found.pop("host")
    assert found == {
        "uuid": "GPU-5ee0",
        **{name: value for name, value in WHOLE.items() if name != "power_mw"},
        "power_w": 612.5,
    }


@pytest.mark.parametrize("missing", ["ecc_uncorrected", "throttle_reasons", "power_mw"])
def test_what_a_gpu_can_t_tell_is_left_out(library: Path, figures: Path, missing: str) -> None:
    write(figures, {name: value for name, value in WHOLE.items() if name != missing})
    found = json.loads(python(READ, "GPU-5ee0", library=library, figures=figures))
    assert missing.replace("_mw", "_w") not in found
    assert found["temperature_c"] == 61


def test_a_gpu_that_nvml_does_not_know_and_a_driver_that_is_not_loaded_lose_nothing(
    library: Path, figures: Path, tmp_path: Path
) -> None:
    assert json.loads(python(READ, "GPU-other", library=library, figures=figures)) is None
    assert json.loads(python(READ, "GPU-5ee0", library=library, figures=tmp_path / "none")) is None
    assert json.loads(python(READ, "GPU-5ee0", library=tmp_path, figures=figures)) is None


def test_without_pynvml_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None


def test_the_thread_reads_again_and_a_reading_is_taken_once(library: Path, figures: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from orchestrator.rank.gpuhealth import GpuHealth, load_nvml
health = GpuHealth(load_nvml(), "GPU-5ee0", every_s=0.01)
seen = []
while len(seen) < 2 or seen[-1]["temperature_c"] != 90:
    reading = health.take()
    if reading is not None:
        seen.append(reading)
        new = Path(sys.argv[1] + ".x")
        new.write_text("temperature_c 90\\n")
        new.replace(sys.argv[1])
health.close()
print(seen[0]["temperature_c"], seen[-1]["temperature_c"])
"""
    assert python(script, str(figures), library=library, figures=figures).split() == ["61", "90"]
