"""One form of `--help` for every verb."""

import argparse


def parser(verb: str, description: str, examples: str, usage: str) -> argparse.ArgumentParser:
    """A parser whose help ends in examples, shown as they are written."""
    return argparse.ArgumentParser(
        prog=f"phalanx {verb}",
        usage=f"phalanx {verb} {usage}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
