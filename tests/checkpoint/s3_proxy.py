"""A proxy before an S3 server, which fails as it is told to."""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from s3_server import BUCKET

FAULTS = ("slow_down", "error_500", "cut", "cut_upload", "partial", "delay", "expired", "lost_answer")
"""503 SlowDown; 500; the answer's body cut; the upload's body cut; a shorter body that says it is whole; a late
answer; 403; the request is carried out, but its answer never comes."""
_REFUSALS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "error_500": (500, "InternalError", "We encountered an internal error."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
}
_DELAY_S = 0.3
_PER_CONNECTION = {"content-length", "connection", "transfer-encoding"}


@dataclass
class Plan:
    """Which requests fail, counted from 0 since it was made, and how."""

    fault: str | None = None
    first: int = 0
    count: int = 0
    """How many in a row."""
    seen: list[str] = field(default_factory=list)
    """`METHOD path` of every request so far."""
    faulted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: str) -> str | None:
        with self.lock:
            number = len(self.seen)
            self.seen.append(request)
            is_hit = self.fault is not None and self.first <= number < self.first + self.count
            self.faulted += is_hit
            return self.fault if is_hit else None


class Proxy(ThreadingHTTPServer):
    """Each store is failed by its own plan, so that many may be at work at a time."""

    daemon_threads = True
    request_queue_size = 128
    """Of a full one, which is short by default, the kernel lets a client wait for seconds."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.port: int = self.server_address[1]
        self.plan = Plan()
        """Of every request that no other plan is for."""
        self.conditional_put = threading.Lock()
        """One at a time: moto looks, and then puts, where S3 does both at once."""
        self.ignores_conditions = False
        """As some object stores do: a conditional put is carried out whatever is there."""
        self.plans: dict[str, Plan] = {}
        """A store's folder in the bucket -> its plan."""
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def plan_for(self, path: str) -> Plan:
        """`/bucket/FOLDER/...`, or a listing with `prefix=FOLDER/...` in its query."""
        found = re.match(rf"/{BUCKET}/([0-9a-z]+)/", path) or re.search(r"[?&]prefix=([0-9a-z]+)(?:/|%2F)", path)
        return self.plans.get(found.group(1), self.plan) if found else self.plan

    def close(self) -> None:
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: object) -> None: ...

    def handle_any(self) -> None:
        body = _read_body(self)
        fault = self.server.plan_for(self.path).take(f"{self.command} {self.path}")
        if fault in _REFUSALS:
            self._refuse(*_REFUSALS[fault])
        elif fault == "cut_upload":
            self._hang_up()
        else:
            answer, data = self._forward(body)
            self._answer(answer, data, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def _refuse(self, status: int, code: str, text: str) -> None:
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _forward(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        left_out = {"transfer-encoding", "expect"} | ({"if-none-match"} if self.server.ignores_conditions else set())
        headers = {key: value for key, value in self.headers.items() if key.lower() not in left_out}
        headers["Content-Length"] = str(len(body))
        is_conditional = any(key.lower() == "if-none-match" for key in headers)
        with self.server.conditional_put if is_conditional else nullcontext():
            return self._ask(headers, body)

    def _ask(self, headers: dict[str, str], body: bytes) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.upstream_port)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    def _answer(self, answer: HTTPResponse, data: bytes, fault: str | None) -> None:
        if fault == "delay":
            self.server.stopped.wait(_DELAY_S)
        if fault == "lost_answer":
            self._hang_up()
            return
        if fault == "partial" and self.command == "GET":
            data = data[: len(data) // 2]
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _PER_CONNECTION:
                self.send_header(key, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._hang_up()
        else:
            self.wfile.write(data)


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Expect", "").lower() == "100-continue":
        handler.send_response_only(100)
        handler.end_headers()
    if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
        return b"".join(iter(_chunk_reader(handler.rfile.readline, handler.rfile.read), b""))
    return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))


def _chunk_reader(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> Callable[[], bytes]:
    def next_chunk() -> bytes:
        size = int(re.split(rb"[;\r\n]", readline(), maxsplit=1)[0], 16)
        data = read(size)
        readline()
        return data

    return next_chunk
