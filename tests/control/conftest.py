"""Fixtures of the tests on real ranks: data prepared once, one warm agent for all."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from ranks import Data, Ranks, prepare_small_data

# Properties are checked without a clock: these machines are shared.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return prepare_small_data(tmp_path_factory.mktemp("corpus") / "prepared")


@pytest.fixture(scope="session")
def ranks(data: Data) -> Iterator[Ranks]:
    with Ranks(data) as ranks:
        yield ranks
