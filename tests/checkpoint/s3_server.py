"""A real S3 server (moto's) on a free loopback port, and a proxy before it that fails as it is told to."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
FAULTS = ("slow_down", "error_500", "cut", "cut_upload", "partial", "delay", "expired", "lost_answer")
"""503 SlowDown; 500; the answer's body cut; the upload's body cut; a shorter body that says it is whole; a late
answer; 403; the request is carried out, but its answer never comes."""
_DELAY_S = 0.3


@contextmanager
def moto_server() -> Iterator[int]:
    """Its port; the bucket is there and empty."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        client_of(port).create_bucket(Bucket=BUCKET)
        yield port
    finally:
        server.stop()


def client_of(port: int):
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )


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


class Proxy:
    """Each store is failed by its own plan, so that many may be at work at a time."""

    def __init__(self, upstream_port: int) -> None:
        self.plan = Plan()
        """Of every request that no other plan is for."""
        self.ignores_conditions = False
        """As some object stores do: a conditional put is carried out whatever is there."""
        self.plans: dict[str, Plan] = {}
        """A store's folder in the bucket -> its plan."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def handle_any(self) -> None:
                body = read_body(self)
                fault = proxy.plan_for(self.path).take(f"{self.command} {self.path}")
                if fault == "slow_down":
                    self.refuse(503, "SlowDown", "Please reduce your request rate.")
                elif fault == "error_500":
                    self.refuse(500, "InternalError", "We encountered an internal error.")
                elif fault == "expired":
                    self.refuse(403, "ExpiredToken", "The provided token has expired.")
                elif fault == "cut_upload":
                    self.hang_up()
                else:
                    self.forward(body, fault)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def refuse(self, status: int, code: str, text: str) -> None:
                data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def hang_up(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def forward(self, body: bytes, fault: str | None) -> None:
                connection = HTTPConnection("127.0.0.1", upstream_port)
                left_out = {"transfer-encoding", "expect"} | (
                    {"if-none-match"} if proxy.ignores_conditions else set()
                )
                headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if fault == "delay":
                    proxy.stopped.wait(_DELAY_S)
                if fault == "lost_answer":
                    self.hang_up()
                    return
                if fault == "partial" and self.command == "GET":
                    data = data[: len(data) // 2]
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in {"content-length", "connection", "transfer-encoding"}:
                        self.send_header(key, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.hang_up()
                else:
                    self.wfile.write(data)

        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.port: int = self._server.server_address[1]

    def plan_for(self, path: str) -> Plan:
        """`/bucket/FOLDER/...`, or a listing with `prefix=FOLDER/...` in its query."""
        found = re.match(rf"/{BUCKET}/([0-9a-z]+)/", path) or re.search(r"[?&]prefix=([0-9a-z]+)(?:/|%2F)", path)
        return self.plans.get(found.group(1), self.plan) if found else self.plan

    def close(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
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
