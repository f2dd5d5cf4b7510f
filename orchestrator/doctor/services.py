"""What a run may talk to: Ray, SLURM, W&B."""

import netrc
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.doctor.finding import Finding, Level
from orchestrator.fleet.surroundings import TOKEN_FILE, knock

WANDB_URL = "https://api.wandb.ai"
REACH_TIMEOUT_S = 3.0


def services(ray_address: str | None) -> Iterator[Finding]:
    yield ray(ray_address or os.environ.get("RAY_ADDRESS"))
    yield from ray_token()
    yield slurm()
    yield wandb()


def ray(address: str | None) -> Finding:
    if address in (None, "auto"):
        return Finding("ray", Level.ok, "none is named: phalanx starts its own, or joins the one on this machine")
    host, _, port = address.rpartition(":")
    if "://" not in address and address != "local" and not (host and port.isdecimal()):
        cure = "name the head's GCS port, as in 10.0.0.1:6379"
        return Finding("ray", Level.fail, f"{address} is not HOST:PORT", cure)
    try:
        knock(address)
    except OSError as error:
        cure = "check cluster.address or RAY_ADDRESS, and that its head runs (ray status)"
        return Finding("ray", Level.fail, f"nothing answers at {address}: {error.strerror or error}", cure)
    return Finding("ray", Level.ok, f"something listens at {address}")


def ray_token() -> Iterator[Finding]:
    """The token opens the cluster to whoever can read it; its content is never shown."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN_FILE)).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ:
        cure = "put it into a file of mode 0600 and set RAY_AUTH_TOKEN_PATH: environments are stored and shown"
        yield Finding("ray token", Level.warn, "in the environment", cure)
    elif not path.exists():
        if "RAY_AUTH_TOKEN_PATH" in os.environ:
            yield Finding("ray token", Level.fail, f"{path} is not there", "write it, or unset RAY_AUTH_TOKEN_PATH")
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("ray token", Level.warn, f"{path} can be read by others", f"chmod 600 {path}")
    else:
        yield Finding("ray token", Level.ok, f"{path}, readable by you alone")


def slurm() -> Finding:
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        nodes = os.environ.get("SLURM_JOB_NODELIST", "?")
        return Finding("slurm", Level.ok, f"inside job {job} on {nodes}")
    if shutil.which("sbatch") is None:
        return Finding("slurm", Level.ok, "not here (no sbatch): phalanx submit needs a machine that has it")
    return Finding("slurm", Level.ok, f"sbatch at {shutil.which('sbatch')}")


def wandb() -> Finding:
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        return Finding("wandb", Level.ok, f"WANDB_MODE={mode}")
    url = os.environ.get("WANDB_BASE_URL", WANDB_URL)
    host = urlsplit(url).hostname or url
    if not _has_wandb_key(host):
        return Finding("wandb", Level.ok, "no API key: runs are recorded offline, and sent by phalanx sync RUN")
    try:
        port = urlsplit(url).port or (443 if url.startswith("https") else 80)
        socket.create_connection((host, port), timeout=REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:  # ValueError: no such port can be
        cure = "runs are recorded offline meanwhile; check the proxy, or set tracking.wandb.mode=offline"
        return Finding(
            "wandb", Level.warn, f"{host} does not answer: {getattr(error, 'strerror', None) or error}", cure
        )
    return Finding("wandb", Level.ok, f"key found, {host} answers")


def _has_wandb_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
