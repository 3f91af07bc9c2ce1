"""Sets structlog up once per process: JSON lines to stderr, or coloured text where stderr is a terminal."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def set_up_logging(level: str, **context: str) -> None:
    """Configure structlog for this process; `context` (deployment, replica) is on every line."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    # Ray Serve replaces sys.stderr by a logger of its own, which holds lines back in the throughput profile.
    pretty = sys.__stderr__ is not None and sys.__stderr__.isatty()

    def add_context(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {**context, **event}

    shared: list[Processor] = [
        add_context,  # not a context variable: those are unset in tasks and threads that others start
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]
    console: list[Processor] = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    lines: list[Processor] = [
        # Local variables stay out: they would carry clients' rows and secrets into the log.
        structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *(console if pretty else lines)],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(sys.__stderr__),
        cache_logger_on_first_use=True,
    )
