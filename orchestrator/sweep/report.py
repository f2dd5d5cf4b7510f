"""sweep.html and summary.json: what a sweep came to. One self-contained page; it asks no network for anything."""

import json
from collections.abc import Mapping
from html import escape

from orchestrator.codec import encode
from orchestrator.data.files import write_atomically
from orchestrator.report.page import POLICY
from orchestrator.sweep import plots
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.sampler import importances
from orchestrator.sweep.settings import Metric, is_maximised
from orchestrator.sweep.space import Space, parameter_words
from orchestrator.sweep.study import Study, Trial
from orchestrator.sweep.wording import HEADER, counts_text, table_row, value_text

STYLE = """
:root { color-scheme: light dark; --line: #2b6cb0; --good: #2f855a; --weak: #a0aec0; --bad: #c53030; }
@media (prefers-color-scheme: dark) { :root { --line: #63b3ed; --good: #68d391; --weak: #718096; --bad: #fc8181; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, table { font: 13px/1.6 ui-monospace, monospace; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { text-align: left; padding: 0 1rem 0 0; white-space: nowrap; }
svg { width: 100%; height: auto; } text { font-size: 11px; fill: currentColor; }
polyline { fill: none; stroke: var(--weak); stroke-width: 1.2; }
polyline.finished { stroke: var(--good); } polyline.best { stroke: var(--line); stroke-width: 2; }
circle { fill: var(--weak); } circle.finished { fill: var(--good); } rect.bar { fill: var(--line); }
line.axis { stroke: currentColor; opacity: .4; } tr.failed { color: var(--bad); } tr.pruned { opacity: .6; }
"""


def write_report(folder: SweepFolder, study: Study, space: Space, metric: Metric) -> None:
    """Write both files anew."""
    trials = list(study.trials.values())
    best = study.best(maximise=is_maximised(metric))
    shares = importances(space, trials, maximise=is_maximised(metric))
    summary = {
        "sweep": folder.sweep_id,
        "metric": str(metric),
        "best": None if best is None else encode(best),
        "importances": shares,
        "trials": [encode(trial) for trial in trials],
    }
    write_atomically(str(folder.summary), (json.dumps(summary, indent=2) + "\n").encode())
    write_atomically(str(folder.report), page(folder.sweep_id, study, space, metric, shares).encode())


def page(sweep_id: str, study: Study, space: Space, metric: Metric, shares: Mapping[str, float]) -> str:
    """The whole page as text."""
    trials = list(study.trials.values())
    maximise = is_maximised(metric)
    best = study.best(maximise=maximise)
    words = "none yet" if best is None else " ".join(parameter_words(best.parameters))
    value = "" if best is None else f", {metric} {value_text(best.value, metric)}"
    rows = "".join(_row(trial, metric) for trial in trials)
    head = "".join(f"<th>{name.lower()}</th>" for name in _cells(HEADER))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">
<title>{escape(sweep_id)}</title><style>{STYLE}</style></head><body>
<h1>{escape(sweep_id)}</h1>
<p>{escape(counts_text(study))}</p>
<p>best{escape(value)}: <code>{escape(words)}</code></p>
<h2>History</h2>{plots.history(trials, maximise=maximise)}
<h2>Importance</h2>{plots.importance(shares)}
<h2>Parallel coordinates</h2>{plots.parallel(trials, space, metric.value)}
<h2>Trials</h2><table><tr>{head}</tr>{rows}</table>
</body></html>
"""


def _row(trial: Trial, metric: Metric) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(table_row(trial, metric, None, None)))
    return f'<tr class="{trial.state}">{cells}</tr>'


def _cells(row: tuple[str, ...]) -> tuple[str, ...]:
    """Without the time left, which a finished page can't know."""
    return (*row[:4], *row[5:])
