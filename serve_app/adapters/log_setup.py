"""Sets structlog up once per process: JSON lines to stderr, or coloured text where stderr is a terminal."""

import logging
import sys

import structlog
from structlog.typing import Processor


def set_up_logging(level: str, **context: str) -> None:
    """Configure structlog for this process; `context` (deployment, replica) is on every line."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    # Ray Serve replaces sys.stderr by a logger of its own, which holds lines back in the throughput profile.
    pretty = sys.__stderr__ is not None and sys.__stderr__.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]
    console: list[Processor] = [structlog.dev.ConsoleRenderer()]
    lines: list[Processor] = [
        structlog.processors.dict_tracebacks,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *(console if pretty else lines)],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(sys.__stderr__),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)
