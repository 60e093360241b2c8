"""The HTTP side of a server: Prometheus metrics, health and readiness, in a thread that asks the engine's thread as any client would."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import zmq
from prometheus_client import make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry

from rql_deploy.errors import DeadlineMissed, UserError

from .client import Channel

HEALTH_TIMEOUT = 1.0
"""Seconds within which a healthy server answers a ping."""


class Operations:
    """`/metrics`, `/healthz` (the engine's thread answers) and `/readyz` (warmed up and not stopping) on one port."""

    def __init__(self, channel: Callable[[], Channel], host: str, port: int):
        """`channel` connects to the server, in the thread that will use it. Raises UserError when the port is taken."""
        self._connect = channel
        self._channel: Channel | None = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self._ask))
        self._metrics = make_wsgi_app(registry)
        try:
            self._server = make_server(host, port, self._answer, _Server, _Quiet)
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} for metrics ({error.strerror}): pass another --metrics port") from error
        self.address = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self._channel is not None:
            self._channel.close()

    def _ask(self, operation: str) -> dict[str, Any] | None:
        if self._channel is None:
            self._channel = self._connect()
        try:
            return self._channel.call({"op": operation}, {}, HEALTH_TIMEOUT)[0]
        except (DeadlineMissed, UserError, zmq.ZMQError):
            return None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            page: Iterable[bytes] = self._metrics(environ, start_response)
            return page
        if path not in ("/healthz", "/readyz"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there is /metrics, /healthz and /readyz\n"]
        reply = self._ask("ping")
        good = reply is not None and (path == "/healthz" or bool(reply.get("ready")))
        start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps({"ok": good}).encode() + b"\n"]


class _Server(WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5  # a connection that says nothing is closed

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a probe every few seconds is no news."""


class _Collector:
    """Turns a `stats` reply into Prometheus families at every scrape."""

    def __init__(self, ask: Callable[[str], dict[str, Any] | None]):
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        stats = self._ask("stats")
        yield GaugeMetricFamily("rql_deploy_up", "Whether the engine's thread answers.", value=float(stats is not None))
        if stats is not None:
            yield from families(stats)


def families(stats: dict[str, Any]) -> Iterator[Metric]:
    """The metrics of one `stats` reply."""
    yield _counter("requests", "Requests by operation.", "operation", stats["requests"])
    yield _counter("errors", "Refused requests by error code.", "code", stats["errors"])
    for name, text in (
        ("deadline_misses", "Decisions that left after their budget, and requests dropped because theirs was spent."),
        ("shortened", "Decisions with fewer refinement steps than the bundle's F."),
        ("swaps", "Bundles exchanged while running."),
        ("recorder_dropped", "Decisions that were not recorded."),
    ):
        yield CounterMetricFamily(f"rql_deploy_{name}", text, value=stats[name])
    yield GaugeMetricFamily("rql_deploy_connected_clients", "Open connections.", value=stats["connected"])
    yield GaugeMetricFamily("rql_deploy_in_flight", "Requests waiting and under way.", value=stats["in_flight"])
    yield GaugeMetricFamily("rql_deploy_ready", "Whether the server takes requests.", value=float(stats["ready"]))
    stages = HistogramMetricFamily("rql_deploy_stage_seconds", "Latency of decisions by stage.", labels=["stage"])
    for stage, histogram in stats["stages"].items():
        stages.add_metric([stage], *_buckets(histogram))
    yield stages
    for name, text in (("steps_per_reply", "Refinement steps per decision."), ("batch_rows", "Rows per refinement step.")):
        buckets, total = _buckets(stats[name])
        yield HistogramMetricFamily(f"rql_deploy_{name}", text, buckets=buckets, sum_value=total)


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"rql_deploy_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _buckets(histogram: dict[str, Any]) -> tuple[list[tuple[str, float]], float]:
    seen, buckets = 0, []
    for bound, count in zip([*map(str, histogram["bounds"]), "+Inf"], histogram["counts"], strict=True):
        seen += count
        buckets.append((bound, float(seen)))
    return buckets, histogram["sum"]
