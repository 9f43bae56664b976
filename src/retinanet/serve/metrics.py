"""The metrics of a server, in the format of Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from retinanet.serve.budget import Budget

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# The parts of the time that a request takes.
STAGES = ("receive", "decode", "queue", "network", "answer")


class Metrics:
    """Counters of one server. They are in a registry of their own, so that a process can run several servers."""

    def __init__(self, budget: Budget) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "retinanet_requests", "Answered requests.", ("route", "status"), registry=self._registry
        )
        self._rejected = Counter("retinanet_rejected", "Refused requests.", ("code",), registry=self._registry)
        self._images = Counter("retinanet_images", "Images with detections.", ("model",), registry=self._registry)
        self._stage = Histogram(
            "retinanet_stage_seconds",
            "Time of a request in each stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._request = Histogram(
            "retinanet_request_seconds",
            "Time of a whole request.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "retinanet_batch_images",
            "Images in each batch of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        for kind in ("requests", "bytes", "pixels"):
            gauge = Gauge(f"retinanet_queue_{kind}", f"The {kind} that wait or are computed.", registry=self._registry)
            gauge.set_function(partial(budget.used, kind))
        ProcessCollector(registry=self._registry)
        for stage in STAGES:
            self._stage.labels(stage)

    def finished(self, route: str, status: int, seconds: float) -> None:
        """Count a request of a route that took a number of seconds."""
        self._requests.labels(route, str(status)).inc()
        self._request.labels(route).observe(seconds)

    def refused(self, code: str) -> None:
        """Count a refused request."""
        self._rejected.labels(code).inc()

    def detected(self, model: str, seconds: dict[str, float]) -> None:
        """Count an image of a model, with the seconds of each stage."""
        self._images.labels(model).inc()
        for stage, value in seconds.items():
            self._stage.labels(stage).observe(value)

    def batch(self, images: int) -> None:
        """Count a batch of images."""
        self._batch.observe(images)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
