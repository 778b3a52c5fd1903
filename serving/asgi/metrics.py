"""``GET /metrics``: counters of the server and its models, as Prometheus reads them.

The counters live in the engine and are only put into words here, when somebody asks, so a request
pays nothing for it. The names of Triton's metrics (``nv_inference_...``) stand beside ours, for
the dashboards that know them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.engine import Engine
from ..engine.model import Model
from ..engine.statistics import STAGES, Histogram
from ..siblings import Siblings
from .lifecycle import Lifecycle
from .request import Request
from .responses import Response
from .routing import Route

if TYPE_CHECKING:
    from prometheus_client import Metric

_TRITON_DURATIONS = {
    "nv_inference_queue_duration_us": "queue",
    "nv_inference_compute_input_duration_us": "assemble",
    "nv_inference_compute_infer_duration_us": "run",
    "nv_inference_compute_output_duration_us": "split",
}
_COUNTS: dict[str, tuple[str, Callable[[Model], float]]] = {
    "pyattn_requests_rejected": (
        "Requests that found the queue full",
        lambda model: model.statistics.rejected,
    ),
    "pyattn_requests_expired": (
        "Requests that ran out of time",
        lambda model: model.statistics.expired,
    ),
    "pyattn_requests_cancelled": (
        "Requests whose client went away",
        lambda model: model.statistics.cancelled,
    ),
    "pyattn_requests_failed": (
        "Requests that the model failed on",
        lambda model: model.statistics.fail.count,
    ),
    "pyattn_tokens": (
        "Tokens of requests that were answered",
        lambda model: model.statistics.real,
    ),
    "pyattn_padded_tokens": (
        "Positions that were computed for them, padding included",
        lambda model: model.statistics.padded,
    ),
}
_GAUGES: dict[str, tuple[str, Callable[[Model], float]]] = {
    "pyattn_queue_requests": ("Requests that wait", lambda model: len(model.queue)),
    "pyattn_queue_bytes": ("Bytes of inputs that wait", lambda model: model.queue.bytes),
    "pyattn_running_batches": ("Runs that are under way", lambda model: model.queue.running),
}
_TRITON: dict[str, tuple[str, Callable[[Model], float]]] = {
    "nv_inference_request_success": (
        "Requests that were answered",
        lambda model: model.statistics.success.count,
    ),
    "nv_inference_request_failure": (
        "Requests that failed",
        lambda model: model.statistics.fail.count,
    ),
    "nv_inference_count": ("Rows that were answered", lambda model: model.statistics.inferences),
    "nv_inference_exec_count": ("Runs", lambda model: model.statistics.executions),
    "nv_inference_pending_request_count": ("Requests that wait", lambda model: len(model.queue)),
    "nv_inference_request_duration_us": (
        "Microseconds of requests, from arrival to answer",
        lambda model: model.statistics.success.ns // 1000,
    ),
}


class MetricsEndpoint:
    """The metrics of one application."""

    def __init__(self, engine: Engine, lifecycle: Lifecycle, worker: int | None = None) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._worker = worker
        self._siblings: Siblings | None = None

    def join(self, folder: Path, worker: int) -> None:
        """Answer for all workers of a server, who find each other in `folder`."""
        self._siblings = Siblings(folder, worker, self._text)

    async def open(self) -> None:
        """Tell siblings from now on, where there are some."""
        if self._siblings is not None:
            await self._siblings.open()

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/metrics", {"GET": self.metrics})]

    async def metrics(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with all metrics in Prometheus' text format."""
        # Imported when first asked for: only who scrapes pays for it.
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

        others = [] if self._siblings is None else await self._siblings.ask()
        return Response(200, self._text(others), {"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    def _text(self, others: Iterable[bytes] = ()) -> bytes:
        """Return the metrics of this process, and after them those of the texts of others."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.parser import text_string_to_metric_families

        families = {metric.name: metric for metric in self.collect()}
        for text in others:
            for metric in text_string_to_metric_families(text.decode()):
                families.setdefault(metric.name, metric).samples.extend(metric.samples)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(families.values()))
        content: bytes = generate_latest(registry)
        return content

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, as a collector of prometheus-client does.

        With the number of a worker as a label, the counters of two are two series, and one that
        comes back begins its own anew.
        """
        for metric in self._metrics():
            if self._worker is not None:
                for sample in metric.samples:
                    sample.labels["worker"] = str(self._worker)
            yield metric

    def _metrics(self) -> Iterable[Metric]:
        from prometheus_client import Metric
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        statuses = CounterMetricFamily("pyattn_http_requests", "Answers", labels=["status"])
        for status, count in sorted(Counter(self._lifecycle.answered).items()):
            statuses.add_metric([status], count)
        yield statuses
        in_flight = self._lifecycle.in_flight
        yield GaugeMetricFamily("pyattn_http_in_flight", "Requests in flight", in_flight)
        memory = "Resident memory of the process"
        yield GaugeMetricFamily("pyattn_resident_memory_bytes", memory, resident_bytes())
        models = [(model, [model.name, model.version]) for model in self._engine.models]
        names = ["model", "version"]
        for name, (text, value) in _COUNTS.items():
            counter = CounterMetricFamily(name, text, labels=names)
            for model, labels in models:
                counter.add_metric(labels, value(model))
            yield counter
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=names)
            for model, labels in models:
                gauge.add_metric(labels, value(model))
            yield gauge
        yield from _histograms(models)
        triton = dict(_TRITON)
        for name, stage in _TRITON_DURATIONS.items():
            triton[name] = (f"Microseconds of the stage {stage}", _stage_microseconds(stage))
        for name, (text, value) in triton.items():
            # A counter of prometheus-client would end in _total, and Triton's names do not.
            alias = Metric(name, text, "unknown")
            for model, labels in models:
                alias.add_sample(name, dict(zip(names, labels, strict=True)), value(model))
            yield alias


class _Families:
    """A collector of metrics that were put together before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Yield them."""
        yield from self._families


def _histograms(models: Iterable[tuple[Model, list[str]]]) -> Iterable[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    durations = HistogramMetricFamily(
        "pyattn_duration_seconds",
        "Seconds of the stages of a request",
        labels=["model", "version", "stage"],
    )
    sizes = HistogramMetricFamily("pyattn_batch_rows", "Rows of runs", labels=["model", "version"])
    for model, labels in models:
        with model.statistics.lock:
            for stage in (*STAGES, "total"):
                histogram = model.statistics.durations[stage]
                durations.add_metric([*labels, stage], _buckets(histogram), histogram.sum)
            sizes.add_metric(labels, _buckets(model.statistics.sizes), model.statistics.sizes.sum)
    yield durations
    yield sizes


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return [
        ("+Inf" if bound == float("inf") else f"{bound:g}", count)
        for bound, count in histogram.cumulative()
    ]


def _stage_microseconds(stage: str) -> Callable[[Model], float]:
    return lambda model: model.statistics.stages[stage].ns // 1000


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Return the memory that the process really uses; 0 where the system does not tell."""
    try:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
