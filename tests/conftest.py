"""What tests of several folders share: small data prepared once, and one warm agent for all tests on real ranks."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from rank.ranks import Data, Ranks

# In a shell's background job SIGINT is ignored, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What a time limit sends: fixtures end what they have started, as after Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# Properties are checked without a clock: these machines are shared. CI draws the same examples each time; at your
# desk and in a soak they are new ones.
settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("shared")
# What somebody has measured here must not show in what tests compare.
os.environ["PHALANX_PROBES"] = os.devnull


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> "Data":
    from rank.ranks import prepare_small_data  # torch: only where a test asks

    return prepare_small_data(tmp_path_factory.mktemp("corpus") / "prepared")


@pytest.fixture(scope="session")
def ranks(data: "Data") -> "Iterator[Ranks]":
    from rank.ranks import Ranks

    with Ranks(data) as ranks:
        yield ranks
