import pytest

from orchestrator.observe.units import (
    bytes_text,
    count_text,
    duration_text,
    flops_text,
    megabytes_text,
    plural,
    rate_text,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234, "1,234"),
        (999_499, "999,499"),
        (999_500, "1.00 M"),
        (124_439_808, "124 M"),
        (1.3141e9, "1.31 B"),
        (99.96e9, "100 B"),
        (2.4e12, "2.40 T"),
        (3.14e15, "3,140 T"),
    ],
)
def test_counts(value, text):
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999, "999 FLOPs"),
        (8_360_000, "8.36 MFLOPs"),
        (1.2345e13, "12.3 TFLOPs"),
        (999.9e15, "1,000 PFLOPs"),
        (3.14159e23, "3.14e23 FLOPs"),
    ],
)
def test_flops(value, text):
    assert flops_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (61.3 * 2**30, "61.3 GiB"),
        (2**40 - 1, "1.00 TiB"),
        (80 * 2**30, "80.0 GiB"),
    ],
)
def test_bytes(value, text):
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (4999, "4,999 B"),
        (5000, "0.01 MB"),
        (205_329, "0.21 MB"),
        (31.5e6, "31.5 MB"),
        (2e12, "2,000,000.0 MB"),
    ],
)
def test_megabytes(value, text):
    assert megabytes_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.132, "0.13s"),
        (9.994, "9.99s"),
        (9.999, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (8040, "2h14m"),
        (86_399, "1d00h"),
        (3 * 86_400 + 4 * 3600, "3d04h"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("lr", "text"), [(0, "0"), (2.9e-4, "2.9e-4"), (3e-4, "3e-4"), (0.00012345, "1.23e-4"), (1.0, "1e0")]
)
def test_learning_rates(lr, text):
    assert rate_text(lr) == text


def test_plurals():
    assert [plural(count, "step") for count in (0, 1, 7000)] == ["0 steps", "1 step", "7,000 steps"]
