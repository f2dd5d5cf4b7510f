"""Rows of words as lines in which each column begins, or ends, at one place. Pure."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """One line a row; the columns in `right` end at one place, the others begin at one.

    [("NAME", "STEPS"), ("a", "1,000")], right={1} -> "NAME  STEPS", "a     1,000"
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        padded = [cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in cells]
        lines.append("  ".join(padded).rstrip())
    return lines
