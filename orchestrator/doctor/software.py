"""Python, the libraries, and how torch and the GPUs fit."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from packaging.requirements import Requirement

from orchestrator.doctor.finding import Finding, Level

MIN_PYTHON, BELOW_PYTHON = (3, 11), (3, 13)
DISTRIBUTION = "phalanx"
INSTALL = "install the pinned set: make install, or pip install -c constraints.txt -e ."


def software() -> Iterator[Finding]:
    yield python()
    yield from libraries()
    yield deepspeed_operators()


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if MIN_PYTHON <= sys.version_info[:2] < BELOW_PYTHON:
        return Finding("python", Level.ok, f"{version} at {sys.executable}")
    return Finding("python", Level.fail, version, "make the environment with Python 3.11 or 3.12")


def libraries() -> Iterator[Finding]:
    """Every direct dependency against the range that was tested."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("libraries", Level.fail, f"{DISTRIBUTION} itself is not installed", INSTALL)
        return
    problems, count = [], 0
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            problems.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if problems:
        yield Finding("libraries", Level.fail, "; ".join(problems), INSTALL)
    else:
        yield Finding("libraries", Level.ok, f"{count} direct dependencies, all in their tested ranges")


def deepspeed_operators() -> Finding:
    """Nothing to look for: our engine uses none of those that DeepSpeed would build at their first use."""
    found = "none is used, so none is compiled: torch's own optimizers step offloaded states, too"
    return Finding("DeepSpeed operators", Level.ok, found)


def torch_and_gpu() -> Iterator[Finding]:
    """Whether torch, the driver and the devices fit each other."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    built_for = torch.version.cuda
    if not devices:
        yield Finding("torch", Level.ok, f"{torch.__version__}; no GPU here: training runs on CPUs over gloo")
        return
    if built_for is None:
        cure = "reinstall torch==2.13.0 from an index that carries CUDA builds"
        yield Finding("torch", Level.fail, f"{torch.__version__} has no CUDA, though there are GPUs", cure)
        return
    if not torch.cuda.is_available():
        cure = "update the driver (nvidia-smi shows the newest CUDA it serves), or give this job GPUs"
        yield Finding("torch", Level.fail, f"{torch.__version__} can't use the GPUs with this driver", cure)
        return
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    level = Level.ok if len(names) == 1 else Level.warn
    cure = "" if level is Level.ok else "the slowest sets the pace: use nodes of one kind"
    found = f"{torch.__version__}, CUDA {built_for}; {torch.cuda.device_count()} x {', '.join(sorted(names))}"
    yield Finding("torch", level, found, cure)
