"""`phalanx export`: a checkpoint as a Hugging Face folder."""

import argparse
from pathlib import Path

from launch.artifact import add_artifact_arguments, open_artifact
from launch.cli_help import parser
from launch.lineage import FILE_NAME, record_lineage
from orchestrator.data import files
from orchestrator.errors import ConfigError

EXAMPLES = """  phalanx export quickstart-1a2b3c4d exported/
  phalanx export runs/llama-1a2b3c4d exported/ --step 4000

Then, for example: vllm serve exported/

DIR/lineage.json says what it was made from. Where the run is tracked by W&B, a W&B run of type `export` has used the
checkpoint's artifact and made the export's."""


def run(argv: list[str]) -> int:
    """Write DIR and name its files. Raises ConfigError for a model no class can hold, or a DIR with files."""
    options = _parser().parse_args(argv)
    from model.export import ExportTokenizer, architecture, export_hugging_face

    artifact = open_artifact(options)
    try:
        architecture(artifact.model)
    except ValueError as error:
        raise ConfigError(*str(error).splitlines()) from error
    tokenizer_json = files.read_bytes(artifact.tokenizer_url).decode()
    tokenizer = ExportTokenizer(tokenizer_json, artifact.manifest.tokenizer.eos_token_id)
    folder = Path(options.folder).expanduser()
    try:
        names = export_hugging_face(
            artifact.model,
            artifact.reader.read,
            folder,
            tokenizer=tokenizer,
            origin=f"run `{artifact.run_id}`, step {artifact.step:,}",
        )
        print(f"{folder}: step {artifact.step:,} of {artifact.run_id}\n  " + "\n  ".join([*names, FILE_NAME]))
        record_lineage(artifact, folder)
    except FileExistsError as error:
        raise ConfigError(f"{error}; name a new one") from error
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror or error}") from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parsing = parser(
        "export", "Write a checkpoint as fp32 safetensors that transformers' own classes load.", EXAMPLES
    )
    add_artifact_arguments(parsing)
    parsing.add_argument("folder", metavar="DIR", help="a new or empty folder")
    return parsing
