"""Sets structlog up once per process: JSON lines to stderr, or coloured text where stderr is a terminal."""

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def set_up_logging(level: str, **context: str) -> None:
    """Configure structlog for this process; `context` (deployment, replica) is on every line.

    A line that cannot be written, on a full disk above all, is lost and stops nothing, in Serve's own logs too.
    """
    # A handler that fails would complain on sys.stderr, which Serve has made a logger: the complaint fails in its turn.
    logging.raiseExceptions = False
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
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _LossyStream(sys.__stderr__))),
        cache_logger_on_first_use=True,
    )


class _LossyStream:
    """What of a stream structlog uses; errors of the system are swallowed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or lose the text."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.write(text)

    def flush(self) -> None:
        """Flush, or keep it for the next time."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.flush()
