"""Recorded requests: what was asked, what was answered live and by which version, and what is told of a record.

The values of inputs that may not be kept are replaced by `NEUTRAL` before anything is written. The answer that was
given then fits the inputs no more, so a replay has the version that gave it answer the changed inputs first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from serve_app.domain.diff_report import DiffReport
from serve_app.domain.errors import ServeAppError, nearest
from serve_app.domain.signature import Column, Signature

NEUTRAL: Final = 0.0
"""What stands for a value that may not be kept: the same for every model, and nobody's value is needed to know it."""
MAX_TOLD_FAILURES: Final = 10
Name = Annotated[str, Field(max_length=256)]


class ReplayError(ServeAppError):
    """A version cannot be run on the record; the message says why in one sentence."""


class NothingRecordedError(ServeAppError):
    """The family has no recorded request to run a version on."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordHead(_Document):
    """What all requests of one file have in common: names and widths of the columns, and which inputs are neutral.

    `most_requests` and `most_bytes` are what the file may grow to.
    """

    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    redacted: tuple[str, ...] = ()
    most_requests: int = 0
    most_bytes: int = 0

    @classmethod
    def of(cls, signature: Signature, redacted: Sequence[str]) -> "RecordHead":
        """Return the head for a signature.

        Raises:
            ReplayError: Something is to be redacted that is no input: nothing may be recorded then.
        """
        names = signature.input_names
        for name in redacted:
            if name not in names:
                raise ReplayError(f"redact: {name!r} is no input{nearest(name, names)}; nothing is recorded")
        return cls(inputs=widths(signature.inputs), outputs=widths(signature.outputs), redacted=tuple(sorted(redacted)))

    @property
    def redacted_places(self) -> tuple[int, ...]:
        """Places of a row's values that are to be neutral."""
        found: list[int] = []
        place = 0
        for name, width in self.inputs:
            if name in self.redacted:
                found += range(place, place + width)
            place += width
        return tuple(found)


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request: when (seconds since the epoch), who answered, rows, the answer's rows, and how long it took."""

    at_s: float
    version: str
    rows: Sequence[Sequence[float]]
    outputs: Sequence[Sequence[Any]]
    seconds: float


class RecordFacts(_Document):
    """What a version was run on: the requests between two times (seconds since the epoch), and who answered them."""

    requests: int = 0
    from_s: float | None = None
    to_s: float | None = None
    answered_by: Mapping[str, int] = {}
    redacted: tuple[str, ...] = ()


class ReplayFailure(_Document):
    """A request that the version did not answer: its place in the record from 1 on, when it came, and the error."""

    number: int
    at_s: float
    error: str


class ReplayReport(_Document):
    """How a version answers recorded requests, against what was answered live.

    `replayed` of the record's requests were run, fewer where the time was up. `compared_with` is empty where the
    recorded answers were compared with; it names the version that answered again where inputs are redacted. In `diff`,
    `live` are the latencies that were recorded, of whole requests under load, and `latency` those of the model alone.
    """

    family: str
    version: str
    record: RecordFacts
    replayed: int
    compared_with: str = ""
    diff: DiffReport
    failures: tuple[ReplayFailure, ...] = ()


def widths(columns: Sequence[Column]) -> tuple[tuple[str, int], ...]:
    """Return names and widths of columns."""
    return tuple((column.name, column.width) for column in columns)


def places_of(recorded: Sequence[tuple[str, int]], wanted: Sequence[tuple[str, int]]) -> list[int] | None:
    """Return from which places of a recorded row the wanted columns come; None where they are not the same columns."""
    if sorted(recorded) != sorted(wanted):
        return None
    starts: dict[str, int] = {}
    place = 0
    for name, width in recorded:
        starts[name] = place
        place += width
    return [starts[name] + i for name, width in wanted for i in range(width)]


def columns_told(columns: Sequence[tuple[str, int]], most: int = 8) -> str:
    """Name columns for a message."""
    names = [name if width == 1 else f"{name}[{width}]" for name, width in columns]
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")
