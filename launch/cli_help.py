"""One form of `--help` for every verb."""

import argparse


def parser(verb: str, description: str, examples: str, usage: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help ends in examples, shown as they are written. `usage`: where argparse's own won't do."""
    return argparse.ArgumentParser(
        prog=f"phalanx {verb}",
        usage=None if usage is None else f"phalanx {verb} {usage}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
