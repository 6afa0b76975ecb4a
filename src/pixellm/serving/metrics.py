"""Figures of a running server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pixellm.serving.worker import Worker

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts what a server does; a registry of its own, so that two servers don't mix."""

    def __init__(self, worker: Worker) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "pixellm_requests",
            "Requests by route and status",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "pixellm_request_seconds",
            "From a request's arrival to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_piece = Histogram(
            "pixellm_first_piece_seconds",
            "From a question's arrival to the first piece of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter("pixellm_answer_tokens", "Tokens written", registry=registry)
        self.masks = Counter("pixellm_masks", "Masks shown", registry=registry)
        self.left = Counter(
            "pixellm_clients_left", "Clients that left before their answer", registry=registry
        )
        for name, text, value in (
            ("pixellm_waiting", "Requests that wait for a row", lambda: worker.num_waiting),
            ("pixellm_running", "Requests being answered", lambda: worker.num_running),
            ("pixellm_engine_failures", "In a row, at this moment", lambda: worker.failures),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)
