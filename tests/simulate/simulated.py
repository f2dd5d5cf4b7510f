"""What the tests of the simulation share: a setting, and what a course says of itself."""

import functools

from launch.compose import compose
from orchestrator.simulate.outcome import Course
from orchestrator.simulate.setting import Setting, setting_of

WORDS = ["experiment=llama_8b_h100x64", "tracking=jsonl"]


@functools.cache
def setting(gpus: int = 64, ranks_per_node: int = 1) -> Setting:
    return setting_of(compose(WORDS).config, gpus=gpus, ranks_per_node=ranks_per_node)


def assert_clean(course: Course) -> None:
    assert course.violations == [], f"seed {course.seed}, after {dict(course.injected)}"
