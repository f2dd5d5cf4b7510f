"""Headless Chromium, made to ask us for everything that it wants from a network."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-default-apps", "--disable-extensions", "--disable-domain-reliability",
    "--metrics-recording-only", "--no-pings", "--disable-features=Translate,OptimizationHints,MediaRouter",
)  # fmt: skip


def need_chromium() -> None:
    """Skips where there is none; in CI that is a failure."""
    if CHROMIUM is None:
        if os.environ.get("PHALANX_REQUIRE_CHROMIUM") == "1":
            pytest.fail("PHALANX_REQUIRE_CHROMIUM=1, and no chromium is installed")
        pytest.skip("no chromium on the path: apt-get install chromium")


@dataclass
class Proxy:
    """What a browser asks its proxy for; every request is refused."""

    asked: list[str] = field(default_factory=list)
    """First lines of the requests: `GET http://HOST/PATH ...` or `CONNECT HOST:443 ...`."""

    def __enter__(self) -> "Proxy":
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._refuse, args=(connection,), daemon=True).start()

    def _refuse(self, connection: socket.socket) -> None:
        """A browser also opens connections over which it asks nothing for long, or that it gives up."""
        with connection, suppress(OSError):
            self.asked.append(connection.recv(4096).partition(b"\r\n")[0].decode(errors="replace"))
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def opened(page: Path, *options: str, proxy: Proxy | None = None) -> str:
    """What `page` is in the browser, as it prints it with `options` (--dump-dom, --screenshot=FILE)."""
    assert CHROMIUM is not None
    # Its helpers may write into the profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        through = () if proxy is None else (f"--proxy-server={proxy.address}", "--proxy-bypass-list=<-loopback>")
        done = subprocess.run(
            [CHROMIUM, *QUIET, *through, f"--user-data-dir={profile}", *options, page.as_uri()],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout


def hosts(asked: list[str]) -> set[str]:
    """`GET http://HOST/PATH` and `CONNECT HOST:443` -> HOST."""
    targets = [line.split()[1] for line in asked if len(line.split()) > 1]
    return {target.partition("://")[2].partition("/")[0] or target.partition(":")[0] for target in targets}


def hosts_of_page(page: Path, blank: Path) -> set[str]:
    """The hosts that `page` makes the browser ask, without those that it asks by itself, on a blank page as well."""
    blank.write_text("<!doctype html><title>blank</title>")
    itself = asked_by(blank) | {"clients2.google.com", "update.googleapis.com", "accounts.google.com"}
    found = asked_by(page) - itself
    # A page asks each time it is opened; what the browser does in the background comes now and then.
    return found & asked_by(page) if found else found


def asked_by(page: Path) -> set[str]:
    with Proxy() as proxy:
        opened(page, "--dump-dom", proxy=proxy)
    return hosts(proxy.asked)
