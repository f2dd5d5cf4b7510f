"""A run's plots as SVG: text in, text out, no script and no request. Plan half, pure.

Colours and fonts are the page's (classes and `currentColor`), so that light and dark both work. Every figure says
in its title what it shows; the page has the numbers as tables, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from orchestrator.report.axis import Axis, tick_words, value_axis
from orchestrator.report.reduce import Curve, broken_at, reduced

LEFT, RIGHT, BOTTOM = 62, 14, 30
MARKS_HEIGHT = 24
"""Above the plot, for the faults' numbers."""
POINTS_EACH_PX = 0.5
"""Buckets of a curve for each pixel of width; each keeps four points."""
HOVER_ZONES = 120
MARK_GAP_PX = 36
"""Faults nearer than this share one mark."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step."""

    number: int
    step: float
    kind: str
    words: str
    is_listed: bool = True
    """The page's table has a row of it, which the mark links to."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or with `dots` the points on one."""

    name: str
    style: str
    """A class of the page's style sheet."""
    pieces: Sequence[Curve]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    unit: str
    series: Sequence[Series]
    """The first lies on top and is what the hover text tells; points lie above lines."""
    marks: Sequence[Mark] = ()
    width: int = 980
    height: int = 300
    from_zero: bool = False
    last_step: float = 0.0
    """The axis goes at least so far."""


def line_plot(plot: Plot) -> str:
    """The plot; a sentence instead where there is nothing to draw."""
    curves = [piece.finite for series in plot.series for piece in series.pieces]
    values = [curve for curve in curves if curve.y.size]
    if not values:
        return '<p class="none">Nothing was recorded.</p>'
    top = MARKS_HEIGHT if plot.marks else 10
    across = Axis(0.0, max(plot.last_step, *(curve.x[-1] for curve in values)), LEFT, plot.width - RIGHT)
    lowest, highest = min(float(c.y.min()) for c in values), max(float(c.y.max()) for c in values)
    intervals = 5 if plot.height > 250 else 4
    up = value_axis(lowest, highest, plot.height - BOTTOM, top, from_zero=plot.from_zero, intervals=intervals)
    drawn = _frame(plot, across, up) + _marks(plot, across, top)
    for are_dots in (False, True):
        drawn += "".join(_series(one, across, up) for one in reversed(plot.series) if one.dots is are_dots)
    drawn += _not_finite(plot, across, top) + _hover(plot, across, top)
    label = f"{plot.title}, from {lowest:.5g} to {highest:.5g} {plot.unit}".rstrip()
    style = ' class="wide"' if plot.width > 600 else ""
    return (
        f'<svg{style} viewBox="0 0 {plot.width} {plot.height}" role="img" aria-label="{escape(label)}">'
        f"{drawn}</svg>{_legend(plot)}"
    )


def _frame(plot: Plot, across: Axis, up: Axis) -> str:
    """Grid, tick labels, axis words."""
    parts = []
    ticks = up.ticks(6)
    words = tick_words(ticks)
    for value in ticks:
        y = up.place(value)
        parts.append(f'<path class="grid" d="M{across.start:.0f} {y:.1f}H{across.end:.0f}"/>')
        parts.append(_text(across.start - 8, y + 4, words(value), "end"))
    ticks = across.ticks(9 if plot.width > 600 else 5)
    words = tick_words(ticks)
    for value in ticks:
        x = across.place(value)
        parts.append(f'<path class="tick" d="M{x:.1f} {up.start:.0f}v5"/>')
        parts.append(_text(x, up.start + 19, words(value), "middle"))
    parts.append(_text(across.start - 8, up.start + 19, "step", "end"))
    parts.append(f'<path class="axis" d="M{across.start:.0f} {up.start:.0f}H{across.end:.0f}"/>')
    return "".join(parts)


def _series(series: Series, across: Axis, up: Axis) -> str:
    if series.dots:
        return "".join(
            f'<circle class="{series.style}" cx="{across.place(x):.1f}" cy="{up.place(y):.1f}" r="3.5">'
            f"<title>step {x:,.0f}: {escape(series.name)} {y:.5g}</title></circle>"
            for curve in series.pieces
            for piece in reduced(curve, HOVER_ZONES)
            for x, y in zip(piece.x, piece.y, strict=True)
        )
    buckets = max(1, round((across.end - across.start) * POINTS_EACH_PX / max(1, len(series.pieces) ** 0.5)))
    path = "".join(_path(piece, across, up) for curve in series.pieces for piece in reduced(curve, buckets))
    return f'<path class="line {series.style}" d="{path}"/>' if path else ""


def _path(piece: Curve, across: Axis, up: Axis) -> str:
    """`M` and `L` in tenths of a pixel; a lone point is a dot, which round line ends make visible."""
    points = [(round(across.place(x), 1), round(up.place(y), 1)) for x, y in zip(piece.x, piece.y, strict=True)]
    if len(points) == 1:
        return f"M{points[0][0]:g} {points[0][1]:g}h.1"
    kept = [point for index, point in enumerate(points) if index == 0 or point != points[index - 1]]
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in kept)


def _not_finite(plot: Plot, across: Axis, top: float) -> str:
    """A cross at the top where the first series was NaN or infinite."""
    places = [x for curve in plot.series[0].pieces for x in broken_at(curve, 20)]
    return "".join(
        f'<path class="odd" d="M{across.place(x) - 4:.1f} {top + 2}l8 8m0 -8l-8 8">'
        f"<title>step {x:,.0f}: not a finite number</title></path>"
        for x in places
    )


def _marks(plot: Plot, across: Axis, top: float) -> str:
    """A line through the plot and the fault's number above it; faults that are too near share a mark."""
    groups: list[list[Mark]] = []
    for mark in sorted(plot.marks, key=lambda mark: (mark.step, mark.number)):
        if groups and across.place(mark.step) - across.place(groups[-1][0].step) < MARK_GAP_PX:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return "".join(_mark(group, across.place(group[0].step), top, plot.height - BOTTOM) for group in groups)


def _mark(group: Sequence[Mark], x: float, top: float, bottom: float) -> str:
    first, kinds = group[0], {mark.kind for mark in group}
    kind = "failure" if "failure" in kinds else first.kind
    label = str(first.number) if len(group) == 1 else f"{first.number}+"
    words = [f"{mark.number}. step {mark.step:,.0f}: {mark.words}" for mark in group[:8]]
    if len(group) > len(words):
        words.append(f"and {len(group) - len(words):,} more")
    listed = next((mark.number for mark in group if mark.is_listed), None)
    tag, link = ("g", "") if listed is None else ("a", f' href="#fault-{listed}"')
    half = 7 + 3.5 * (len(label) - 1)
    return (
        f'<{tag}{link} class="mark {kind}"><title>{escape(chr(10).join(words))}</title>'
        f'<path d="M{x:.1f} {top - 5:.0f}V{bottom:.0f}"/>'
        f'<rect x="{x - half:.1f}" y="3" width="{2 * half:.1f}" height="15" rx="7.5"/>'
        f'<text x="{x:.1f}" y="14" text-anchor="middle">{label}</text></{tag}>'
    )


def _hover(plot: Plot, across: Axis, top: float) -> str:
    """Transparent columns whose titles say what the first series is there."""
    pieces = [piece.finite for piece in plot.series[0].pieces if piece.finite.x.size]
    if not pieces:
        return ""
    x, y = np.concatenate([p.x for p in pieces]), np.concatenate([p.y for p in pieces])
    zones = min(HOVER_ZONES, x.size)
    places = np.linspace(0, x.size - 1, zones).astype(int)
    width = (across.end - across.start) / max(1, zones - 1)
    height = plot.height - BOTTOM - top
    columns = "".join(
        f'<rect x="{across.place(x[at]) - width / 2:.0f}" y="{top}" width="{width:.1f}" height="{height}">'
        f"<title>step {x[at]:,.0f}: {y[at]:,.5g} {escape(plot.unit)}</title></rect>"
        for at in places
    )
    return f'<g class="hover">{columns}</g>'


def _legend(plot: Plot) -> str:
    shown = [series for series in plot.series if any(piece.y.size for piece in series.pieces)]
    if len(shown) < 2:
        return ""
    keys = "".join(
        f'<span><i class="{"dot" if series.dots else "dash"} {series.style}"></i>{escape(series.name)}</span>'
        for series in shown
    )
    return f'<p class="legend">{keys}</p>'


def share_bar(shares: Sequence[tuple[str, str, float]], words: Callable[[float], str]) -> str:
    """One bar of (class, name, share 0 to 1), as wide as the page; every part that is there can be seen."""
    width, height, gap = 980.0, 40, 2.0
    least = 3.0
    room = width - gap * (len(shares) - 1)
    wide = [max(least, share * room) for _, _, share in shares]
    over = sum(wide) - room  # what the smallest were given is taken from the largest
    wide[wide.index(max(wide))] -= over
    parts, x = [], 0.0
    for (style, name, share), part in zip(shares, wide, strict=True):
        parts.append(
            f"<g><title>{escape(name)}: {words(share)}</title>"
            f'<rect class="part {style}" x="{x:.1f}" width="{part:.1f}" height="{height}" rx="3"/>'
        )
        if part > 8.0 * len(name) + 50:
            parts.append(f'<text class="on {style}" x="{x + 12:.1f}" y="25">{escape(name)} {words(share)}</text>')
        parts.append("</g>")
        x += part + gap
    label = escape(", ".join(f"{name} {words(share)}" for _, name, share in shares))
    return f'<svg class="bar" viewBox="0 0 980 {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
