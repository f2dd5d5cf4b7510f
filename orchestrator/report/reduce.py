"""Curves of any length to what a plot can show. Plan half: numpy only.

Of every bucket (a pixel column or so) the first, smallest, largest and last point are kept, as they stand: M4
(Jugel et al., VLDB 2014). A line through them looks as one through all points does, and no spike is lost.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in order of `x`; `y` may hold NaN and infinities, which break the line."""

    x: Floats
    y: Floats

    @property
    def finite(self) -> "Curve":
        is_finite = np.isfinite(self.y)
        return Curve(self.x[is_finite], self.y[is_finite])


def reduced(curve: Curve, buckets: int) -> list[Curve]:
    """The curve as unbroken pieces, of at most about 4 points in each of `buckets` equal parts of its x range."""
    pieces = [piece for piece in _unbroken(curve) if piece.x.size]
    if not pieces:
        return []
    low, high = pieces[0].x[0], pieces[-1].x[-1]
    kept = [
        Curve(piece.x[chosen], piece.y[chosen]) for piece in pieces for chosen in [_m4(piece, low, high, buckets)]
    ]
    if len(kept) > buckets:  # a line that breaks at every other point: points do as well
        return [kept[index] for index in np.linspace(0, len(kept) - 1, buckets).astype(int)]
    return kept


def broken_at(curve: Curve, most: int) -> list[float]:
    """The x of at most `most` of the points that are not finite: the first and the last ones, and between."""
    odd = curve.x[~np.isfinite(curve.y)]
    if odd.size > most:
        odd = odd[np.linspace(0, odd.size - 1, most).astype(int)]
    return [float(x) for x in odd]


def _unbroken(curve: Curve) -> list[Curve]:
    is_finite = np.isfinite(curve.y)
    if is_finite.all():
        return [curve]
    edges = np.flatnonzero(np.diff(is_finite.astype(np.int8))) + 1
    x, y, keep = (np.split(values, edges) for values in (curve.x, curve.y, is_finite))
    return [Curve(*piece) for *piece, kept in zip(x, y, keep, strict=True) if kept[0]]


def _m4(curve: Curve, low: float, high: float, buckets: int) -> Indices:
    """Indices of what is kept, in order."""
    count = curve.x.size
    if count <= 4:
        return np.arange(count)
    width = (high - low) / buckets or 1.0
    bucket = np.minimum(((curve.x - low) / width).astype(np.int64), buckets - 1)
    firsts = np.flatnonzero(np.r_[True, np.diff(bucket) != 0])
    lasts = np.r_[firsts[1:] - 1, count - 1]
    order = np.lexsort((curve.y, bucket))  # within each bucket by value; buckets keep their places
    return np.unique(np.concatenate([firsts, lasts, order[firsts], order[lasts]]))
