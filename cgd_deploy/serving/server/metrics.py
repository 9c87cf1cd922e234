"""The numbers of a server for Prometheus: requests, and what its engines tell."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ...runtime.statistics import SECONDS
from ...runtime.statistics import Histogram as Counts
from .service import Service


class Requests:
    """Counts answered requests by route and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "cgd_http_request_seconds", "Time until the answer was sent", ["route"], registry=registry, buckets=SECONDS
        )
        self._answers = Counter("cgd_http_requests", "Answered requests", ["route", "status"], registry=registry)

    def add(self, route: str, status: int, seconds: float) -> None:
        self._seconds.labels(route).observe(seconds)
        self._answers.labels(route, str(status)).inc()


class Engines(Collector):
    """Reads ``Engine.stats`` of every model when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        models = list(self._service.models or ())
        info = InfoMetricFamily("cgd_engine", "What each engine is", labels=["model"])
        pictures = CounterMetricFamily("cgd_pictures", "Pictures by outcome", labels=["model", "outcome"])
        waiting = GaugeMetricFamily("cgd_queue_pictures", "Pictures in the queue", labels=["model"])
        in_flight = GaugeMetricFamily("cgd_batches_in_flight", "Batches being computed", labels=["model"])
        sizes = HistogramMetricFamily("cgd_batch_pictures", "Pictures of a batch", labels=["model"])
        seconds = HistogramMetricFamily("cgd_stage_seconds", "Time of a stage", labels=["model", "stage"])
        gallery = GaugeMetricFamily("cgd_gallery_pictures", "Pictures in the gallery", labels=["model"])
        for model in models:
            stats = model.engine.stats()
            info.add_metric([model.name], {name: str(value) for name, value in model.facts.items()})
            for outcome, count in stats.pictures.items():
                pictures.add_metric([model.name, outcome], count)
            waiting.add_metric([model.name], stats.waiting)
            in_flight.add_metric([model.name], stats.in_flight)
            sizes.add_metric([model.name], _buckets(stats.batch_sizes), stats.batch_sizes.total)
            for stage, counts in stats.seconds.items():
                seconds.add_metric([model.name, stage], _buckets(counts), counts.total)
            if model.gallery:
                gallery.add_metric([model.name], len(model.gallery.index))
        yield from (info, pictures, waiting, in_flight, sizes, seconds, gallery)


def _buckets(counts: Counts) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as Prometheus wants them."""
    below, buckets = 0, []
    for bound, count in zip((*map(str, map(float, counts.bounds)), "+Inf"), counts.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return buckets
