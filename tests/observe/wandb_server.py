"""As much of W&B's server as its client (0.31) needs, from what the client sends: runs with their history.

GraphQL (Viewer, RunResumeStatus, UpsertBucket, RewindRun, alerts, files, artifacts) and the file stream, in which
history comes as lines with the offset of the first. A real server does the same with them: a line at an offset that
it has replaces that line.
"""

import gzip
import http.server
import json
import threading
from dataclasses import dataclass, field
from typing import Any

API_KEY = "a" * 40
HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"


@dataclass
class Stored:
    """One run on the server."""

    name: str
    created: dict[str, Any]
    """The variables of the UpsertBucket that created it."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Offset -> row."""
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    starts: int = 1
    """How often a client began or went on with it."""
    rewinds: list[float] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    is_preempting: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """In order of the offsets, which must have no gap."""
        assert sorted(self.history) == list(range(len(self.history))), "lines are missing"
        return [self.history[offset] for offset in sorted(self.history)]


class WandbServer:
    """Listens on loopback. `stop` is its death: connections are refused from then on, until `start` again."""

    def __init__(self) -> None:
        self.runs: dict[str, Stored] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.uses: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.can_rewind = True
        self.delay_s = 0.0
        """How late every answer is."""
        self.changed = threading.Condition()
        self._closing = threading.Event()
        self._port = 0
        self._listening: _Listening | None = None

    def __enter__(self) -> "WandbServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Again on the same port, with what it knew."""
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._closing.clear()
        self._listening = _Listening(("127.0.0.1", self._port), handler)
        self._port = self._listening.server_port
        self._thread = threading.Thread(target=self._listening.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Late answers are never given."""
        listening, self._listening = self._listening, None
        if listening is not None:
            self._closing.set()
            listening.shutdown()
            listening.server_close()
            self._thread.join()

    @property
    def is_up(self) -> bool:
        return self._listening is not None

    def wait_late(self) -> None:
        """As long as the answer is late, or the server dies."""
        self._closing.wait(self.delay_s)

    def answer_late_ones(self) -> None:
        """Those that are late are answered now."""
        self._closing.set()
        self._closing.clear()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        known = getattr(self, f"_on_{operation}", None)
        return known(variables) if known else {}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """A post to a run's file stream."""
        with self.changed:
            run = self.runs[name]
            for file, part in (body.get("files") or {}).items():
                if file == HISTORY:
                    for place, line in enumerate(part["content"], start=part["offset"]):
                        run.history[place] = json.loads(line)
                elif file == SUMMARY:
                    run.summary |= json.loads(part["content"][-1])
            run.is_preempting = run.is_preempting or bool(body.get("preempting"))
            if body.get("complete"):
                run.exit_codes.append(body.get("exitcode"))
            self.changed.notify_all()

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}}}

    def _on_RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": None}
        rows = run.rows
        bucket = self._bucket(run) | {
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            "tags": run.tags,
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "p", "name": "phalanx", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def _on_UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        with self.changed:
            is_new = asked["name"] not in self.runs
            if is_new:
                self.runs[asked["name"]] = Stored(asked["name"], asked)
            run = self.runs[asked["name"]]
            run.starts += not is_new and asked["displayName"] is not None
            run.config |= {
                key: entry.get("value")
                for key, entry in json.loads(asked["config"] or "{}").items()
                if key != "_wandb"
            }
            if asked["tags"] is not None:
                run.tags = asked["tags"]
            self.changed.notify_all()
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": is_new}}

    def _on_RewindRun(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        assert self.can_rewind
        run = self.runs[asked["runName"]]
        run.rewinds.append(asked["metricValue"])
        kept = [row for row in run.rows if row[asked["metricName"]] <= asked["metricValue"]]
        run.history = dict(enumerate(kept))
        return {"rewindRun": {"rewoundRun": self._bucket(run) | {"historyLineCount": len(kept)}}}

    def _on_CreateArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        with self.changed:
            self.artifacts.append(asked["input"])
        sequence = {"id": "s", "latestArtifact": None}
        made = {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def _on_CreateArtifactManifest(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{self.url}/upload/m", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _on_CommitArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d"}}}

    def _on_UseArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.uses.append(asked["input"])
        return {"useArtifact": {"artifact": {"id": asked["input"]["artifactID"]}}}

    def _on_(self, _: dict[str, Any]) -> dict[str, Any]:
        """Questions without a name: about artifacts that there are. There are none."""
        return {"project": None, "artifact": None}

    def _on_NotifyScriptableRunAlert(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        with self.changed:
            self.alerts.append(asked)
            self.changed.notify_all()
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _bucket(self, run: Stored) -> dict[str, Any]:
        return {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.created["displayName"],
            "description": "",
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "sweepName": None,
            "historyLineCount": len(run.history),
            "project": {"id": "p", "name": run.created["project"], "entity": {"id": "e", "name": "me"}},
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        state = self.server_state
        state.wait_late()
        if not state.is_up:
            self.close_connection = True
            return
        parts = self.path.strip("/").split("/")
        if parts[0] == "graphql":
            asked = json.loads(body)
            try:
                answer = {"data": state.answer(asked["operationName"], asked.get("variables") or {})}
            except AssertionError:
                answer = {"data": None, "errors": [{"message": f"no {asked['operationName']} here"}]}
            self._send(answer)
        elif parts[0] == "files" and parts[-1] == "file_stream":
            state.stream(parts[3], json.loads(body))
            self._send({})
        else:
            self._send({})

    do_PUT = do_GET = do_POST  # noqa: N815

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class _Listening(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone is nothing to print a traceback for."""
