"""How a route of predictions speaks: what it reads, and how it writes answers and errors. All else is the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serve_app.domain.errors import InvalidInputError
from serve_app.ingress.error_responses import Response
from serve_app.usecases.route_request import Target

Rows = list[list[float]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The things in which routes of predictions differ.

    `read(body, content_type, target, max_rows)` gives the rows or raises a `RequestError`; `write(outputs, target)`
    gives the body of the answer; `refuse(error)` the whole answer to an error, whatever it is; `entity(body)` what the
    rows are about, or None where it does not say, and never raises.
    """

    read: Callable[[bytes, bytes, Target, int], Rows]
    write: Callable[[NDArray[Any], Target], bytes]
    refuse: Callable[[Exception], Response]
    entity: Callable[[bytes], str | None]


def windows_wanted(target: Target) -> InvalidInputError:
    """Return the error for rows that were sent to a model of windows."""
    return InvalidInputError(
        f"family {target.family!r} takes windows, not rows: send them as 'windows' to POST /predict/{target.family}"
    )
