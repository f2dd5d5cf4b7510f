"""What of a config must not hold a secret: the config is written into the run folder. Plan half."""

import re
from collections.abc import Iterator
from operator import attrgetter

from orchestrator.config import RunConfig

_PLACES = (
    "run.root",
    "data.path",
    "data.source",
    "data.tokenizer",
    "checkpoint.url",
    "checkpoint.init_from",
)
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")
"""`user:password@` behind a URL's scheme."""
SECRET_NAME = re.compile(r"(^|_)(api_?key|access_?key|secret|secret_key|password|passwd|credentials|token)$", re.I)
"""Of a variable or a key whose value nobody else may read."""
_ASSIGNED = re.compile(r"\b([A-Za-z_]\w*)=(?![\"']?[$`])(?=\S)")
"""A variable that a shell line, or an option as in `--env=NAME=VALUE`, sets to something that stands there."""


def place_problems(config: RunConfig) -> Iterator[str]:
    """A sentence for each place that names a password; it does not show it."""
    for key in _PLACES:
        value = attrgetter(key)(config)
        for place in value if isinstance(value, list) else [value]:
            if isinstance(place, str) and _PASSWORD.search(place):
                shown = _PASSWORD.sub(r"\1:***@", place)
                yield (
                    f"{key}={shown} holds a password, which would be written into the run "
                    "folder; leave it out, and give it to fsspec by its environment (FSSPEC_FTP_PASSWORD=... for "
                    "ftp://) or in ~/.config/fsspec/conf.json"
                )


def variable_problems(config: RunConfig) -> Iterator[str]:
    """A sentence for each variable of a job that would write a secret down; it does not show it."""
    slurm, kube = config.cluster.slurm, config.cluster.kuberay
    ways_out = {
        "slurm": "export it where you type phalanx submit: sbatch hands your environment on to the job",
        "kuberay": "name a Kubernetes secret in cluster.kuberay.secrets, as SECRET/KEY",
    }
    for scheduler, environment in (("slurm", slurm.environment), ("kuberay", kube.environment)):
        for name, value in environment.items():
            if SECRET_NAME.search(name) or _PASSWORD.search(str(value)):
                yield _variable_problem(f"cluster.{scheduler}.environment.{name}", ways_out[scheduler])
    texts = {
        "cluster.slurm.setup": slurm.setup,
        "cluster.slurm.extra": map(str, slurm.extra.values()),
        "cluster.slurm.container.arguments": slurm.container.arguments,
    }
    for key, lines in texts.items():
        for name in (name for line in lines for name in _ASSIGNED.findall(line)):
            if SECRET_NAME.search(name):
                yield _variable_problem(f"{key}, which sets {name},", ways_out["slurm"])


def _variable_problem(where: str, way_out: str) -> str:
    return f"{where} looks like a secret, which would be written into the run folder; leave it out, and {way_out}"
