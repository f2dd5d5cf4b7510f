"""report.html: one self-contained page. No script; its own security policy forbids every request. Plan half."""

from datetime import UTC, datetime
from html import escape

from orchestrator.observe.goodput import Spent
from orchestrator.observe.units import duration_text
from orchestrator.report import sections
from orchestrator.report.charts import Mark, Plot, Series, line_plot, share_bar
from orchestrator.report.incidents import Incident, costliest, incidents
from orchestrator.report.record import RunRecord
from orchestrator.report.saved import best_of, saved_checkpoints
from orchestrator.report.sections import Table
from orchestrator.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
HALF = 470


def page(record: RunRecord) -> str:
    """The whole page as text."""
    found = incidents(record.events)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(record.run_id)}: {record.state}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{_part_rules()}</style></head><body><main>
{_head(record)}
{_plots(record, found)}
{_time(record)}
{_failures(record, found)}
{_checkpoints(record)}
{_section("Predicted and measured", _table(sections.predictions(record)))}
{_section("What was run", _table(sections.what_was_run(record)) + _changes(record))}
{_section("Data", _table(sections.data(record)))}
{_section("Environment", _table(sections.environment(record)))}
{_commands(record)}
<footer>Made by phalanx on {_date(record.made_s)} from the files of the run folder. This page asks no network for
anything.</footer>
</main></body></html>
"""


def _part_rules() -> str:
    return "".join(
        f".part.{part} {{ fill: var(--{part}); }} .swatch.{part} {{ background: var(--{part}); }}\n" for part in Spent
    )


def _head(record: RunRecord) -> str:
    begun = record.events[0]["t"] if record.events else record.made_s
    where = f" on {record.environment['host']}" if "host" in record.environment else ""
    sub = f"started {_date(begun)}{where}, {duration_text(record.goodput.wall_s)} of wall time"
    tiles = "".join(
        f"<div><dt>{escape(tile.label)}</dt><dd>{escape(tile.value)}<small>{escape(tile.more)}</small></dd></div>"
        for tile in sections.tiles(record)
    )
    digest = sections.end_digest(record)
    return (
        f'<header><h1>{escape(record.run_id)}</h1><span class="state {record.state}">{record.state}</span>'
        f'<p class="sub">{escape(sub)}</p></header><dl class="tiles">{tiles}</dl>'
        + (f'<h2>Why it failed</h2><pre class="digest">{escape(digest)}</pre>' if digest else "")
    )


def _plots(record: RunRecord, found: list[Incident]) -> str:
    history, steps = record.history, float(record.step)
    listed = {one.number for one in costliest(found, sections.SHOWN_INCIDENTS)}
    marks = [Mark(one.number, one.step, str(one.kind), one.words, one.number in listed) for one in found]
    loss = Plot(
        "Loss",
        "",
        (
            Series("training", "main", [history.curve("loss")]),
            Series("run again or set aside", "old", history.repeated("loss")),
            Series("validation", "second", [history.sparse("eval_loss")], dots=True),
        ),
        marks,
        last_step=steps,
    )
    speed = _single(record, "Throughput", "tokens/s", "tokens_per_s", marks=marks, width=980, height=210)
    small = [
        _single(record, "Gradient norm", "", "grad_norm"),
        _single(record, "Learning rate", "", "lr", from_zero=True),
        _single(record, "Peak memory of a rank", "MiB", "memory_bytes", scale=2**-20, from_zero=True),
        Plot(
            "Waiting for data",
            "% of step",
            (Series("", "main", [history.share("data_s", "step_s")]),),
            width=HALF,
            height=170,
            from_zero=True,
            last_step=steps,
        ),
    ]
    if history.largest("mfu") is not None:
        small.append(_single(record, "Model FLOPs utilisation", "%", "mfu", scale=100.0, from_zero=True))
    if len({*history.values("world_size")}) > 1:
        small.append(_single(record, "Workers", "", "world_size", from_zero=True))
    pairs = "".join(_figure(plot) for plot in small)
    return _section("Training", f'{_figure(loss)}{_figure(speed)}<div class="pair">{pairs}</div>')


def _single(
    record: RunRecord,
    title: str,
    unit: str,
    name: str,
    *,
    scale: float = 1.0,
    marks: list[Mark] | None = None,
    width: int = HALF,
    height: int = 170,
    from_zero: bool = False,
) -> Plot:
    series = (Series("", "main", [record.history.curve(name, scale)]),)
    zero = from_zero or name == "tokens_per_s"
    return Plot(title, unit, series, marks or (), width, height, from_zero=zero, last_step=float(record.step))


def _figure(plot: Plot) -> str:
    curve = plot.series[0].pieces[0].finite
    at_step = f" at step {curve.x[-1]:,.0f}" if curve.y.size and plot.width > HALF else ""
    newest = f"{curve.y[-1]:,.4g}{at_step}" if curve.y.size else ""
    unit = f", {plot.unit}" if plot.unit else ""
    head = f"<h3><b>{escape(plot.title)}<span>{escape(unit)}</span></b><span>{escape(newest)}</span></h3>"
    return f"<figure>{head}{line_plot(plot)}</figure>"


def _time(record: RunRecord) -> str:
    if not record.goodput.wall_us:
        return ""
    shares = sections.time_shares(record)
    table = sections.where_time_went(record)
    marked = [f'<i class="swatch {style}"></i>' for style, _, _ in shares]
    bar = share_bar(shares, lambda share: f"{100 * share:.1f}%")
    return _section("Where the time went", f"<figure>{bar}</figure>{_table(table, before=marked)}")


def _failures(record: RunRecord, found: list[Incident]) -> str:
    table = sections.failures(record, found)
    ids = [f"fault-{row[0]}" for row in table.rows]
    return _section("Failures and what they cost", _table(table, ids=ids))


def _checkpoints(record: RunRecord) -> str:
    saved = saved_checkpoints(record)
    best = best_of(saved)
    words = ""
    if best is not None:
        value = best.eval_loss if best.eval_loss is not None else best.loss
        kind = "validation loss" if best.eval_loss is not None else "training loss"
        measured = "" if value is None else f", {kind} {value:.4f}"
        words = f"<p>Best: <code>{escape(best.path)}</code> at step {best.step:,}{measured}.</p>"
    return _section("Checkpoints", words + _table(sections.checkpoints(record, saved)))


def _changes(record: RunRecord) -> str:
    table = sections.config_changes(record)
    return f"<h3>Changed against the recipe</h3>{_table(table)}"


def _commands(record: RunRecord) -> str:
    lines = "\n".join(f"<i># {escape(what)}</i>\n{escape(line)}" for what, line in sections.commands(record))
    return _section("What to do with it", f"<pre>{lines}</pre>")


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _table(table: Table, *, ids: list[str] | None = None, before: list[str] | None = None) -> str:
    """`ids` name the rows for links; `before` is markup that goes before each row's first cell."""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    if not table.rows:
        return note
    head = "".join(
        f'<th scope="col"{_right(table, column)}>{escape(name)}</th>' for column, name in enumerate(table.header)
    )
    body = ""
    for index, row in enumerate(table.rows):
        cells = "".join(
            f"<td{_right(table, column) or _key(table, column)}>"
            f"{before[index] if before and column == 0 else ''}{escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        body += f'<tr id="{ids[index]}">{cells}</tr>' if ids else f"<tr>{cells}</tr>"
    head = f"<thead><tr>{head}</tr></thead>" if table.header else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>{note}'


def _right(table: Table, column: int) -> str:
    return ' class="n"' if column in table.numbers else ""


def _key(table: Table, column: int) -> str:
    return ' class="k"' if not table.header and column == 0 else ""


def _date(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"
