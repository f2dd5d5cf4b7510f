"""A sweep's plots as SVG, drawn by hand: a page that holds them needs no network and no script. Plan half, pure.

Colours come from the page (`currentColor` and CSS variables), so that light and dark both work.
"""

from collections.abc import Mapping, Sequence
from html import escape

from orchestrator.report.axis import Axis
from orchestrator.sweep.space import Choices, Dimension, Space, as_number, extremes
from orchestrator.sweep.study import Trial, TrialState

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 16, 36


def history(trials: Sequence[Trial], *, maximise: bool) -> str:
    """Each trial's value by its number, and the best so far as a line."""
    points = [(t.number, t.value, t) for t in trials if t.value is not None and t.state is not TrialState.failed]
    if not points:
        return _nothing("no trial has a value yet")
    values = [value for _, value, _ in points]
    x = Axis(0, max(1, *(number for number, _, _ in points)), LEFT, WIDTH - RIGHT)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP)
    dots = "".join(
        f'<circle cx="{x.place(number):.1f}" cy="{y.place(value):.1f}" r="4" class="{trial.state}">'
        f"<title>{escape(_title(trial))}</title></circle>"
        for number, value, trial in points
    )
    best: list[str] = []
    record: float | None = None
    for number, value, trial in points:
        if trial.state is TrialState.finished:
            record = value if record is None else (max if maximise else min)(record, value)
        if record is not None:
            best.append(f"{x.place(number):.1f},{y.place(record):.1f}")
    line = f'<polyline points="{" ".join(best)}" class="best"/>' if len(best) > 1 else ""
    frame = (
        _y_labels(y) + _text(LEFT, HEIGHT - 10, "trial 0") + _text(WIDTH - RIGHT, HEIGHT - 10, f"{x.high:g}", "end")
    )
    return _svg(frame + line + dots, "value of each trial, best so far as a line")


def importance(shares: Mapping[str, float]) -> str:
    """A bar for each key's share of the variance."""
    if not shares:
        return _nothing("importances need four finished trials with different values")
    height = 28 * len(shares) + 12
    longest = max(shares.values())
    bars = ""
    for index, (key, share) in enumerate(shares.items()):
        top = 8 + 28 * index
        width = (WIDTH - 300) * share / longest
        bars += f'<rect x="220" y="{top}" width="{width:.1f}" height="18" class="bar"/>'
        bars += _text(210, top + 14, key, "end") + _text(228 + width, top + 14, f"{100 * share:.0f}%")
    return _svg(bars, "share of the variance that each key explains", height)


def parallel(trials: Sequence[Trial], space: Space, metric: str) -> str:
    """A line for each trial through its parameters to its value."""
    lines = [t for t in trials if t.value is not None and all(d.key in t.parameters for d in space)]
    if not lines:
        return _nothing("no trial has a value yet")
    names = [*(dimension.key for dimension in space), metric]
    across = Axis(0, len(names) - 1, LEFT, WIDTH - LEFT)
    values = [t.value for t in lines if t.value is not None]
    last = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP + 8)
    drawn = ""
    for trial in sorted(lines, key=lambda t: t.value or 0.0, reverse=True):
        assert trial.value is not None
        heights = [_height(dimension, trial.parameters[dimension.key]) for dimension in space]
        heights.append(last.place(trial.value))
        path = " ".join(f"{across.place(index):.1f},{height:.1f}" for index, height in enumerate(heights))
        drawn += f'<polyline points="{path}" class="{trial.state}"><title>{escape(_title(trial))}</title></polyline>'
    axes = ""
    for index, name in enumerate(names):
        at = across.place(index)
        ends = extremes(space[index]) if index < len(space) else [f"{last.low:.4g}", f"{last.high:.4g}"]
        axes += f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP + 8}" y2="{HEIGHT - BOTTOM}" class="axis"/>'
        axes += _text(at, HEIGHT - 4, name, "middle") + _text(at, HEIGHT - 20, ends[0], "middle")
        axes += _text(at, TOP + 2, ends[-1], "middle")
    return _svg(drawn + axes, "each trial's parameters and value")


def _height(dimension: Dimension, text: str) -> float:
    """Where a value stands on its axis; one that the space has no more stands at the top."""
    bottom, top = HEIGHT - BOTTOM, TOP + 8
    if isinstance(dimension, Choices):
        place = dimension.values.index(text) if text in dimension.values else len(dimension.values) - 1
        return Axis(0, max(1, len(dimension.values) - 1), bottom, top).place(place)
    number = as_number(text) or dimension.low
    within = min(max(number, dimension.low), dimension.high)
    return Axis(dimension.low, dimension.high, bottom, top, dimension.is_log).place(within)


def _title(trial: Trial) -> str:
    words = " ".join(f"{key}={value}" for key, value in trial.parameters.items())
    return f"{trial.id} {trial.state}: {trial.value:.5g} {words}"


def _y_labels(y: Axis) -> str:
    return "".join(_text(LEFT - 8, y.place(value) + 4, f"{value:.4g}", "end") for value in (y.low, y.high))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(inside: str, label: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _nothing(why: str) -> str:
    return f"<p>{escape(why)}</p>"
