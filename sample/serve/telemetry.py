"""What operators see: Prometheus metrics, and a line of JSON for each request. Never a prompt."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from unclip_sample.serve.engine import Engine, Task

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "unclip"}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("requests", "Answers sent", ["path", "status"], **own)
        self.request_seconds = Histogram(
            "request_seconds", "From request to answer", ["path"], buckets=SECONDS, **own
        )
        self.tasks = Counter("tasks", "Calls of the pipeline by how they ended", ["how"], **own)
        self.task_seconds = Histogram(
            "task_seconds", "From first step to last", buckets=SECONDS, **own
        )
        self.batch_rows = Histogram(
            "batch_rows", "Rows of a network call", ["stage"], buckets=ROWS, **own
        )
        self.stage_seconds = Counter("stage_seconds", "Time in networks", ["stage"], **own)
        self.waiting = Gauge("waiting_pictures", "Pictures in the queue", **own)
        self.running = Gauge("running_tasks", "Calls of the pipeline being drawn", **own)

    def watch(self, engine: Engine) -> None:
        """Count what an engine does."""
        engine.watch.ran = self._ran
        engine.watch.ended = self._ended
        self.waiting.set_function(lambda: engine.num_waiting)
        self.running.set_function(lambda: len(engine.running))

    def _ran(self, stage: str, rows: int, seconds: float) -> None:
        self.batch_rows.labels(stage).observe(rows)
        self.stage_seconds.labels(stage).inc(seconds)

    def _ended(self, task: Task, how: str, seconds: float) -> None:
        self.tasks.labels(how).inc()
        self.task_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; of an exception its kind and place, not its words."""
        facts = getattr(record, "facts", {})
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **facts,
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=True)


def log_as_json(level: str = "INFO") -> None:
    """Send this server's log, and uvicorn's, to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("unclip", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
    for name in ("unclip", "uvicorn"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("uvicorn.error").propagate = True
    logging.getLogger("unclip").setLevel(level)
    logging.getLogger("uvicorn").setLevel("WARNING")


def log_request(facts: dict[str, Any]) -> None:
    """One answer."""
    logging.getLogger("unclip.serve").info("request", extra={"facts": facts})
