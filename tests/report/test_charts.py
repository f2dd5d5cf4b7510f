"""A plot as text, against a reviewed one."""

import numpy as np
from golden_texts import check_golden
from pages import check_page

from orchestrator.report.charts import Mark, Plot, Series, line_plot, share_bar
from orchestrator.report.reduce import Curve


def curve(*values: float) -> Curve:
    return Curve(np.arange(1.0, len(values) + 1), np.array(values))


def test_a_plot_with_everything_in_it() -> None:
    plot = Plot(
        "Loss",
        "",
        (
            Series("training", "main", [curve(8.0, 7.0, 6.5, float("nan"), 6.0, 5.0)]),
            Series("run again", "old", [curve(8.5, 8.0)]),
            Series("validation", "second", [Curve(np.array([3.0, 6.0]), np.array([6.4, 5.2]))], dots=True),
        ),
        (
            Mark(1, 2, "failure", "rank 1 <was> killed"),
            Mark(2, 2, "resize", "3 workers"),
            Mark(3, 5, "anomaly", "nan", is_listed=False),
        ),
        last_step=6,
    )
    drawn = line_plot(plot)
    check_golden("plot.svg", drawn.replace("><", ">\n<"))
    check_page(f'<main id="fault-1">{drawn}</main>')


def test_faults_that_are_near_share_a_mark() -> None:
    marks = [Mark(number, 2.0 * number, "failure", "killed") for number in range(1, 501)]
    drawn = line_plot(Plot("Loss", "", (Series("", "main", [Curve(np.arange(1000.0), np.ones(1000))]),), marks))
    assert 15 < drawn.count('class="mark failure"') < 28
    assert "and 12 more" in drawn


def test_nothing_to_draw_is_a_sentence() -> None:
    assert "Nothing was recorded" in line_plot(Plot("Loss", "", (Series("", "main", [curve()]),)))
    assert "Nothing was recorded" in line_plot(Plot("Loss", "", (Series("", "main", [curve(float("nan"))]),)))


def test_every_part_of_a_bar_can_be_seen_and_together_they_fill_it() -> None:
    shares = [("productive", "training", 0.9989), ("start", "start", 0.0010), ("recovery", "recovery", 0.0001)]
    drawn = share_bar(shares, lambda share: f"{100 * share:.2f}%")
    widths = [float(part.partition('"')[0]) for part in drawn.split(' width="')[1:]]
    assert min(widths) >= 3.0
    assert sum(widths) + 2 * 2.0 == 980.0
    assert "recovery: 0.01%" in drawn
    check_page(drawn)
