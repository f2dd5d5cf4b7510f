"""What nvidia-smi says, read; recorded in its form, since there is no GPU here."""

import pytest

from orchestrator.doctor.finding import Level
from orchestrator.doctor.gpus import gpu_findings, health

ONE, TWO, OTHER = "GPU-1a", "GPU-2b", "GPU-3c"
FINE = "0, Not Active, Not Active, Not Active"


def test_gpus_that_are_missing_or_there_twice() -> None:
    assert [(f.level, f.found) for f in gpu_findings([ONE], 2)] == [(Level.fail, "1 can be used, 2 were given")]
    assert [f.level for f in gpu_findings([ONE, ONE], 2)] == [Level.fail]
    assert [(f.level, f.found) for f in gpu_findings([ONE, TWO], 2)] == [(Level.ok, "2, each one of its own")]


@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        (FINE, Level.ok, "no memory errors, not throttled"),
        ("[N/A], [N/A], [N/A], [N/A]", Level.ok, "no memory errors, not throttled"),
        ("2, Not Active, Not Active, Not Active", Level.fail, f"{TWO} had 2 memory errors"),
        ("0, Active, Not Active, Not Active", Level.fail, f"{TWO} is slowed down by its hardware for its heat"),
        ("0, Not Active, Active, Not Active", Level.fail, f"{TWO} is slowed down for want of power"),
        ("0, Not Active, Not Active, Active", Level.warn, f"{TWO} is slowed down by the driver"),
    ],
)
def test_health(fields: str, level: Level, words: str) -> None:
    answer = f"{ONE}, {FINE}\n{TWO}, {fields}\n{OTHER}, 9, Active, Active, Active\n"
    (finding,) = health(answer, [ONE, TWO])
    assert finding.level is level
    assert words in finding.found
    assert bool(finding.cure) == (level is not Level.ok)


def test_a_driver_that_does_not_know_a_field_says_nothing_of_health() -> None:
    assert list(health('Field "ecc.errors" is not a valid field to query.\n', [ONE])) == []
