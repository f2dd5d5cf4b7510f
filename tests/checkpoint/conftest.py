"""An S3 server behind a proxy that fails as it is told to, for tests that ask for it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from s3_proxy import Proxy


@pytest.fixture(scope="session")
def one_proxy() -> "Iterator[Proxy]":
    """One for all modules: s3fs keeps its clients, and would go on with those of an earlier server."""
    from s3_proxy import Proxy  # moto: only where a test asks
    from s3_server import moto_server

    with moto_server() as port:
        proxy = Proxy(port)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def proxy(one_proxy: "Proxy") -> "Iterator[Proxy]":
    """Where S3 is, in this module; nothing fails yet."""
    from s3_proxy import Plan
    from s3_server import CREDENTIALS

    one_proxy.plan = Plan()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{one_proxy.port}")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield one_proxy
