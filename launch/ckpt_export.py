"""`phalanx ckpt export`: a checkpoint as plain safetensors by logical name."""

import argparse
from pathlib import Path

from launch.artifact import add_artifact_arguments, open_artifact
from launch.cli_help import parser
from orchestrator.checkpoint.plain import export_plain
from orchestrator.errors import ConfigError

EXAMPLES = """  phalanx ckpt export RUN exported/
  phalanx ckpt export RUN exported/ --step 1000 --optimizer

`phalanx export` writes a Hugging Face folder instead; `phalanx ckpt import exported/` reads this one again."""


def run(argv: list[str]) -> int:
    """Write DIR and name its files. Raises ConfigError where DIR has files or can't be written."""
    options = _parser().parse_args(argv)
    artifact = open_artifact(options)
    folder = Path(options.folder).expanduser()
    try:
        names = export_plain(artifact.reader, folder, has_moments=options.optimizer)
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror or error}") from error
    print(f"{folder}: step {artifact.step:,} of {artifact.run_id}\n  " + "\n  ".join(names))
    return 0


def _parser() -> argparse.ArgumentParser:
    parsing = parser(
        "ckpt export",
        "Write a checkpoint as plain fp32 safetensors by logical name, with its facts as JSON.",
        EXAMPLES,
    )
    add_artifact_arguments(parsing)
    parsing.add_argument("folder", metavar="DIR", help="a new or empty folder")
    parsing.add_argument("--optimizer", action="store_true", help="the optimizer's moments, too")
    return parsing
