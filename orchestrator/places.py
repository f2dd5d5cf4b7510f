"""Files and URLs of a config that must not hold a secret: the config is written into the run folder. Plan half."""

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
