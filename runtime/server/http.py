"""HTTP endpoint of a server: Prometheus metrics, health and readiness.

Each connection has a thread, for one request and a few seconds. Where there are too many the oldest is ended,
so that connections that send nothing, or a byte now and then, keep nobody from an answer.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry

from rql_deploy.runtime.wire.addresses import bracketed

from .listen import open_listener
from .status import StatusQuery

MAX_CONNECTIONS = 32
REQUEST_LIMIT = 5.0
"""Seconds from the beginning of a connection to its end."""


class MetricsServer:
    """`/metrics`, `/healthz` (every server replies) and `/readyz` (one takes requests) on one port."""

    def __init__(self, queries: Sequence[StatusQuery], host: str, port: int):
        """Several `queries` are workers and get a label each. Raises UserError when the port is taken."""
        # One thread asks, whoever wants to know: it owns the connections to the server.
        self._asking = concurrent.futures.ThreadPoolExecutor(1, "status")
        queries = [self._in_turn(query) for query in queries]
        self._queries = queries
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(queries))
        self._metrics = make_wsgi_app(registry)
        self._server = _Server(open_listener("--metrics", host, port), self._answer)
        self.address = f"http://{bracketed(host)}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._asking.shutdown(cancel_futures=True)

    def _in_turn(self, query: StatusQuery) -> StatusQuery:
        def ask(operation: str) -> dict[str, Any] | None:
            answer = self._asking.submit(query, operation)
            try:
                return answer.result(REQUEST_LIMIT)
            except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
                answer.cancel()
                return None

        return ask

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            page: Iterable[bytes] = self._metrics(environ, start_response)
            return page
        if path not in ("/healthz", "/readyz"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there is /metrics, /healthz and /readyz\n"]
        replies = [query("ping") for query in self._queries]
        good = (
            None not in replies
            if path == "/healthz"
            else any(reply is not None and reply.get("ready") for reply in replies)
        )
        start_response(
            "200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")]
        )
        return [json.dumps({"ok": good}).encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, application: Any):
        super().__init__(listener.getsockname(), _Quiet, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]
        self.setup_environ()
        self.set_app(application)
        self._lock = threading.Lock()
        self._began: dict[socket.socket, float] = {}
        """Open connections, oldest first."""

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._began[request] = time.monotonic()
            if len(self._began) > MAX_CONNECTIONS:
                self._end(next(iter(self._began)))
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called twice a second."""
        with self._lock:
            now = time.monotonic()
            for request in [r for r, began in self._began.items() if now - began > REQUEST_LIMIT]:
                self._end(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: the connection is gone, and with it who could be told."""

    def _end(self, request: socket.socket) -> None:
        # Its thread wakes up, and closes it.
        del self._began[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class _Quiet(WSGIRequestHandler):
    timeout = REQUEST_LIMIT

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every few seconds."""


class _Collector:
    """Turns `stats` replies into Prometheus families at every scrape."""

    def __init__(self, queries: Sequence[StatusQuery]):
        self._queries = queries

    def collect(self) -> Iterator[Metric]:
        yield from metric_families([query("stats") for query in self._queries])


def metric_families(replies: Sequence[dict[str, Any] | None]) -> Iterator[Metric]:
    """Metrics of `stats` replies (None: no reply), with the label `worker` if there are several."""
    several = len(replies) > 1
    names = ["worker"] if several else []
    up = GaugeMetricFamily("rql_deploy_up", "Whether the engine's thread answers.", labels=names)
    for number, stats in enumerate(replies):
        up.add_metric([str(number)] if several else [], float(stats is not None))
    yield up
    answers = [
        ([str(number)] if several else [], stats) for number, stats in enumerate(replies) if stats is not None
    ]
    for name, text, label in (
        ("requests", "Requests by operation.", "operation"),
        ("errors", "Rejected requests by error code.", "code"),
    ):
        counts = CounterMetricFamily(f"rql_deploy_{name}", text, labels=[*names, label])
        for worker, stats in answers:
            for key, value in stats[name].items():
                counts.add_metric([*worker, key], value)
        yield counts
    for name, text in (
        (
            "deadline_misses",
            "Decisions that left after their budget, and requests dropped because theirs was spent.",
        ),
        ("shortened", "Decisions with fewer refinement steps than the bundle's F."),
        ("swaps", "Bundles exchanged while running."),
        ("recorder_dropped", "Decisions and episodes that were not recorded."),
    ):
        count = CounterMetricFamily(f"rql_deploy_{name}", text, labels=names)
        for worker, stats in answers:
            count.add_metric(worker, stats[name])
        yield count
    for name, key, text in (
        ("connected_clients", "connected", "Open connections."),
        ("in_flight", "in_flight", "Requests waiting and under way."),
        ("ready", "ready", "Whether the server takes requests."),
    ):
        gauge = GaugeMetricFamily(f"rql_deploy_{name}", text, labels=names)
        for worker, stats in answers:
            gauge.add_metric(worker, float(stats[key]))
        yield gauge
    stages = HistogramMetricFamily(
        "rql_deploy_stage_seconds", "Latency of decisions by stage.", labels=[*names, "stage"]
    )
    for worker, stats in answers:
        for stage, histogram in stats["stages"].items():
            stages.add_metric([*worker, stage], *_buckets(histogram))
    yield stages
    for name, text in (
        ("steps_per_reply", "Refinement steps per decision."),
        ("batch_rows", "Rows per refinement step."),
    ):
        sizes = HistogramMetricFamily(f"rql_deploy_{name}", text, labels=names)
        for worker, stats in answers:
            sizes.add_metric(worker, *_buckets(stats[name]))
        yield sizes


def _buckets(histogram: dict[str, Any]) -> tuple[list[tuple[str, float]], float]:
    seen, buckets = 0, []
    for bound, count in zip([*map(str, histogram["bounds"]), "+Inf"], histogram["counts"], strict=True):
        seen += count
        buckets.append((bound, float(seen)))
    return buckets, histogram["sum"]
