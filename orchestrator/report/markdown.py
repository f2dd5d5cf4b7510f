"""report.md: the same in plain text, for terminals, pull requests and mails. Plan half."""

import numpy as np

from orchestrator.report import sections
from orchestrator.report.incidents import incidents
from orchestrator.report.record import RunRecord
from orchestrator.report.reduce import Curve
from orchestrator.report.saved import saved_checkpoints
from orchestrator.report.sections import Table

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 60


def markdown(record: RunRecord) -> str:
    """The whole report as text."""
    found = incidents(record.events)
    tiles = Table(
        tuple(tile.label for tile in sections.tiles(record)),
        (tuple(f"{tile.value} ({tile.more})" if tile.more else tile.value for tile in sections.tiles(record)),),
    )
    saved = saved_checkpoints(record)
    digest = sections.end_digest(record)
    commands = "\n".join(f"# {what}\n{line}" for what, line in sections.commands(record))
    parts = [
        f"# {record.run_id}: {record.state}",
        _table(tiles),
        f"## Why it failed\n\n```\n{digest}\n```" if digest else "",
        f"## Loss\n\n```\n{sparkline(record.history.curve('loss'))}\n```",
        f"## Where the time went\n\n{_table(sections.where_time_went(record))}" if record.goodput.wall_us else "",
        f"## Failures and what they cost\n\n{_table(sections.failures(record, found))}",
        f"## Checkpoints\n\n{_table(sections.checkpoints(record, saved))}",
        f"## Predicted and measured\n\n{_table(sections.predictions(record))}",
        f"## What was run\n\n{_table(sections.what_was_run(record))}",
        f"### Changed against the recipe\n\n{_table(sections.config_changes(record))}",
        f"## Data\n\n{_table(sections.data(record))}",
        f"## Environment\n\n{_table(sections.environment(record))}",
        f"## What to do with it\n\n```bash\n{commands}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sparkline(curve: Curve) -> str:
    """`9.32 █▆▅▃▂▁ 4.87`: the mean of each of some equal parts, between the first and the last value."""
    known = curve.finite
    if not known.y.size:
        return "nothing was recorded"
    means = np.array([part.mean() for part in np.array_split(known.y, min(_SPARK_WIDTH, known.y.size))])
    low, high = float(means.min()), float(means.max())
    scaled = (means - low) / (high - low) * (len(_BLOCKS) - 1) if high > low else np.zeros(means.size)
    return f"{known.y[0]:.4g} {''.join(_BLOCKS[round(float(value))] for value in scaled)} {known.y[-1]:.4g}"


def _table(table: Table) -> str:
    note = f"\n\n{table.note}" if table.rows and table.note else table.note
    if not table.rows:
        return note
    width = len(table.rows[0])
    header = table.header or ("",) * width
    rules = tuple("--:" if column in table.numbers else "---" for column in range(width))
    lines = [header, rules, *table.rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + note


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
