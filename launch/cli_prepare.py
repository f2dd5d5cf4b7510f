"""`phalanx prepare`: reads the arguments; `launch/prepare.py` and `launch/prepare_verify.py` do the work."""

import argparse

from launch.cli_help import parser

EXAMPLES = """  phalanx prepare experiment=quickstart
  phalanx prepare data.source='books/*.txt' data.path=prepared/books
  phalanx prepare data.source='[s3://bucket/a.jsonl.zst,b.parquet]' data.path=prepared/ab data.text_field=body
  phalanx prepare data.source=notes.txt data.path=prepared/notes data.tokenizer=tokenizer.json
  phalanx prepare --verify data.path=prepared/notes          is every byte still as it was written?

Interrupted, it goes on where it stopped; run twice, it does nothing twice."""


def run(argv: list[str]) -> int:
    """Compose the config from `argv` and prepare its data, or verify it. Raises ConfigError or DataError."""
    options, overrides = _parser().parse_known_args(argv)

    from launch.compose import compose
    from launch.prepare import prepare
    from launch.prepare_verify import verify

    config = compose(overrides).config
    return verify(config) if options.verify else prepare(config)


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "prepare",
        "Turn text (files, globs, URLs; txt, jsonl, parquet, gzip, zstd) into token shards and a manifest.\n"
        "The keys are data.*; data.source and data.path are needed, for --verify only data.path.",
        EXAMPLES,
        "[--verify] [--cfg] [--config-dir DIR] data.source=SOURCE data.path=FOLDER [overrides]",
    )
    made.add_argument(
        "--verify",
        action="store_true",
        help="prepare nothing: read the shards in data.path against their checksums; exits 2 on any damage",
    )
    return made
