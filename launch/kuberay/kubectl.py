"""kubectl: the only file that calls it."""

import shutil
import subprocess

from orchestrator.errors import ConfigError

_TIMEOUT_S = 120.0


def create(manifest: str, name: str) -> str:
    """What kubectl says of the object it has made. Raises ConfigError where there is no kubectl, or it refuses.

    Not `apply`: for a RayJob that has ended that would say `unchanged`, and nothing would run.
    """
    if shutil.which("kubectl") is None:
        raise ConfigError(
            "kubectl is not on the PATH; install it, or print the manifest with --dry-run and hand it to your cluster"
        )
    try:
        done = subprocess.run(
            ["kubectl", "create", "-f", "-"],
            input=manifest,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"kubectl has not answered in {_TIMEOUT_S:g} s; does this answer? kubectl get rayjobs"
        ) from None
    if done.returncode == 0:
        return done.stdout.strip()
    complaint = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    raise ConfigError(f"Kubernetes refuses the RayJob: {complaint}; {_way_out(complaint, name)}")


def _way_out(complaint: str, name: str) -> str:
    if "AlreadyExists" in complaint:
        return f"once it has ended, take it away (kubectl delete rayjob {name}) and submit again: the run goes on"
    if "no matches for kind" in complaint:
        return "install KubeRay 1.5.1 or newer on the cluster"
    if "unknown field" in complaint:
        return "KubeRay there is older than 1.5.1; update it"
    return "look at the manifest with --dry-run, and at your rights with: kubectl auth can-i create rayjobs"
