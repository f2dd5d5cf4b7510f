from orchestrator.observe.aligned import aligned


def test_columns_begin_or_end_at_one_place() -> None:
    rows = [("NAME", "STEPS", "NOTE"), ("a", "1,000", "small"), ("longer", "9", "")]
    assert aligned(rows, right={1}) == [
        "NAME    STEPS  NOTE",
        "a       1,000  small",
        "longer      9",
    ]


def test_no_rows_are_no_lines() -> None:
    assert aligned([]) == []
