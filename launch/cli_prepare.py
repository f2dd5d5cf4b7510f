"""`phalanx prepare`: reads the arguments; `launch/prepare.py` does the work."""

import argparse

from launch.cli_help import parser

EXAMPLES = """  phalanx prepare experiment=quickstart
  phalanx prepare data.source='books/*.txt' data.path=prepared/books
  phalanx prepare data.source='[s3://bucket/a.jsonl.zst,b.parquet]' data.path=prepared/ab data.text_field=body
  phalanx prepare data.source=notes.txt data.path=prepared/notes data.tokenizer=tokenizer.json

Interrupted, it goes on where it stopped; run twice, it does nothing twice."""


def run(argv: list[str]) -> int:
    """Compose the config from `argv` and prepare its data. Raises ConfigError or DataError."""
    _, overrides = _parser().parse_known_args(argv)

    from launch.compose import compose
    from launch.prepare import prepare

    return prepare(compose(overrides).config)


def _parser() -> argparse.ArgumentParser:
    return parser(
        "prepare",
        "Turn text (files, globs, URLs; txt, jsonl, parquet, gzip, zstd) into token shards and a manifest.\n"
        "The keys are data.*; data.source and data.path are needed.",
        EXAMPLES,
        "[--cfg] [--config-dir DIR] data.source=SOURCE data.path=FOLDER [overrides]",
    )
