"""Where the probe of a host's CPU is kept: one small file for each host, because a home folder may be shared.

`$PHALANX_PROBES`, else `$XDG_CACHE_HOME/phalanx/probes`, else `~/.cache/phalanx/probes`; in it `HOST.json`.
"""

import json
import os
import socket
from pathlib import Path

from orchestrator.codec import decode, encode
from orchestrator.data.files import write_atomically
from orchestrator.probe import Probe


def probe_path(host: str | None = None) -> Path:
    """Of this host, or of the one named."""
    folder = os.environ.get("PHALANX_PROBES")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(folder) if folder else Path(cache) / "phalanx" / "probes") / f"{host or socket.gethostname()}.json"


def recorded_probe() -> Probe | None:
    """Of this host; None where there is none, or it can't be read: what it would say is then assumed."""
    try:
        return decode(Probe, json.loads(probe_path().read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def record_probe(probe: Probe) -> Path:
    """Errors: OSError."""
    path = probe_path(probe.host)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), (json.dumps(encode(probe), indent=2) + "\n").encode())
    return path
