"""Numbers as people read them. Pure."""


def count_text(value: float) -> str:
    """1,234 below a million, then 3 digits: `124 M`, `1.31 B`, `2.40 T`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= 0.9995 * size:
            return f"{_three_digits(value / size)} {letter}"
    return f"{value:,.0f}"


def flops_text(value: float) -> str:
    """Decimal units up to a million T: `8.36 MFLOPs`, `3.14e23 FLOPs`."""
    if value >= 1e18:
        return f"{value:.2e} FLOPs".replace("e+", "e")
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * size:
            return f"{_three_digits(value / size)} {letter}FLOPs"
    return f"{value:,.0f} FLOPs"


def bytes_text(value: float) -> str:
    """Binary units: `512 B`, `61.3 GiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 0.9995 * 1024**power:
            return f"{_three_digits(value / 1024**power)} {unit}"
    return f"{value:.0f} B"


def megabytes_text(value: float) -> str:
    """Decimal units, as files are listed: `870 B`, `0.21 MB`, `31.5 MB`, `1,204.0 MB`."""
    if value < 5e3:
        return f"{value:,.0f} B"
    return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e6:.2f} MB"


def duration_text(seconds: float) -> str:
    """`0.13s`, `42s`, `3m05s`, `2h14m`, `3d04h`."""
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def rate_text(value: float) -> str:
    """A learning rate in the shortest form that tells it apart: `2.9e-4`, `0`."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plural(count: int, noun: str) -> str:
    """`1 step`, `7 steps`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
