"""The sums and the page of the benchmarks; what they measure is not tested here."""

import json
from statistics import median

import pytest
from bench import harness
from bench.harness import Bench, Comparison, CpuTimes, Figure, Measured, Quiet, interleave, render_page, summary
from hypothesis import given
from hypothesis import strategies as st

IDLE = Quiet(busy_before=0.01, busy_after=0.02, stolen=0.0)
EXAMPLE = Bench(name="example", title="An example", about="This against that.", pairs=2, measure=lambda _: MEASURED)
MEASURED = Measured(
    settings={"pairs": 2},
    comparisons=[
        Comparison(name="step", unit="ms", goal="1.00", ours=[[2.0, 3.0, 90.0], [6.0]], peer=[[2.0], [3.0]])
    ],
    figures=[Figure(name="first batch", unit="ms", samples=[5.0, 1.0, 3.0])],
)


def test_a_ratio_is_of_the_medians_of_neighbours_not_of_all():
    assert MEASURED.comparisons[0].ratios() == [1.5, 2.0]


def test_sides_with_different_numbers_of_runs_are_refused():
    with pytest.raises(ValueError, match="longer"):
        Comparison(name="step", unit="ms", goal="", ours=[[1.0]], peer=[[1.0], [2.0]]).ratios()


@pytest.mark.parametrize(("count", "p99"), [(1, 1), (2, 2), (99, 99), (100, 99), (101, 100), (200, 198), (1000, 990)])
def test_p99_is_by_nearest_rank(count, p99):
    assert summary(range(count, 0, -1)) == (1, median(range(1, count + 1)), p99)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300))
def test_a_summary_is_ordered_and_at_least_99_of_100_samples_are_below_p99(samples):
    low, middle, p99 = summary(samples)
    assert low <= middle <= max(samples)
    assert sum(sample <= p99 for sample in samples) >= 0.99 * len(samples)
    assert p99 in samples


def test_sides_take_turns(capsys):
    calls = []
    results = interleave(
        3,
        ours=lambda: calls.append("A") or len(calls),
        peer=lambda: calls.append("B") or len(calls),
    )
    assert "".join(calls) == "ABABAB"
    assert results == {"ours": [1, 3, 5], "peer": [2, 4, 6]}


@pytest.mark.parametrize("busy", [{"busy_before": 0.2}, {"busy_after": 0.2}, {"stolen": 0.2}])
def test_one_busy_moment_is_enough(busy):
    assert IDLE.is_quiet
    assert not Quiet(**({"busy_before": 0.0, "busy_after": 0.0, "stolen": 0.0} | busy)).is_quiet


def test_cpu_times_only_grow_and_busy_is_a_part_of_all():
    before = CpuTimes.now()
    while CpuTimes.now().total_s == before.total_s:
        pass
    spent = CpuTimes.now().since(before)
    rounding_s = 1e-6  # differences of seconds since boot
    assert 0 <= spent.busy_s + spent.stolen_s <= spent.total_s + rounding_s


def test_the_page_has_the_table_the_ratio_and_how_to_repeat_it():
    page = render_page({"example": harness.to_record(EXAMPLE, MEASURED, IDLE)})
    assert "## An example\n\nThis against that.\n" in page
    assert "| step | ms | 2 / 4.5 / 90 | 2 / 2.5 / 3 | 1.750 (1.500 to 2.000, n=2) | 1.00 |" in page
    assert "| first batch | ms | 1 / 3 / 5 |" in page
    assert "`python -m tests.bench.example`" in page
    assert "busy 1% before, 2% after" in page
    assert "mislead" not in page


def test_a_busy_machine_is_said_above_the_table():
    busy = Quiet(busy_before=0.5, busy_after=0.0, stolen=0.0)
    page = render_page({"example": harness.to_record(EXAMPLE, MEASURED, busy)})
    assert page.index("busy (50% before") < page.index("| step |")


def test_a_record_replaces_its_own_and_leaves_the_others(tmp_path):
    results, page = tmp_path / "docs" / "benchmarks.json", tmp_path / "docs" / "benchmarks.md"
    record = harness.to_record(EXAMPLE, MEASURED, IDLE)
    harness.write_record("z_other", {**record, "title": "Another"}, results, page)
    harness.write_record("example", {**record, "title": "Before"}, results, page)
    harness.write_record("example", record, results, page)
    assert list(json.loads(results.read_text())) == ["example", "z_other"]
    assert page.read_text() == render_page(json.loads(results.read_text()))
    assert page.read_text().count("## ") == 2
    assert "Before" not in page.read_text()


def test_a_busy_machine_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench"])
    monkeypatch.setattr(harness, "MAX_BUSY_SHARE", -1.0)  # so that any machine is too busy
    monkeypatch.setattr(harness, "GATE_S", 0.05)
    untouched = Bench(name="example", title="", about="", pairs=1, measure=lambda _: pytest.fail("was measured"))
    assert harness.main(untouched) == harness.EXIT_BUSY
    assert "--anyway" in capsys.readouterr().err
