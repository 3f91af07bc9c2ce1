"""The process that explains for a model replica: `python -m serve_app.adapters.explain_worker`, by `ExplainProcess`.

It reads jobs from its standard input and answers each on its standard output. It stands back behind the processes that
serve, and ends when its input does, or when nobody has asked for a while.
"""

import os
import pickle
import select
import signal
from collections import OrderedDict
from typing import Any, Final

from serve_app.adapters.explain_messages import HEAD_BYTES, Job, ModelWanted, framed, length_of
from serve_app.adapters.trial_confinement import lower_priority
from serve_app.domain.errors import CannotExplainError

NICENESS: Final = 10
IDLE_S: Final = 300.0
"""After this long without a job it ends, and gives its 200 MB back."""

MAX_MODELS: Final = 12
"""Models that are kept for the next job: a few versions with a few outputs each."""

_INPUT, _OUTPUT, _ERRORS = 0, 1, 2


def main() -> None:
    """Answer jobs until there are no more."""
    # Ray blocks and ignores some signals in its workers, and a new program inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    answers = os.dup(_OUTPUT)
    os.dup2(_ERRORS, _OUTPUT)  # what libraries print is no answer
    lower_priority(NICENESS)
    models: OrderedDict[str, Any] = OrderedDict()
    while select.select([_INPUT], [], [], IDLE_S)[0]:
        head = _read(HEAD_BYTES)
        if head is None or (body := _read(length_of(head))) is None:
            return
        answer = framed(_answered(pickle.loads(body), models))  # noqa: S301  # from the process that started this one
        try:
            while answer:
                answer = answer[os.write(answers, answer) :]
        except BrokenPipeError:
            return


def _read(n_bytes: int) -> bytes | None:
    """Read exactly this many bytes; None at the end of the input."""
    parts = []
    while n_bytes:
        part = os.read(_INPUT, min(n_bytes, 1 << 20))
        if not part:
            return None
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _answered(job: Job, models: OrderedDict[str, Any]) -> Any:
    """Return `Shares`, `ModelWanted`, or a `CannotExplainError`."""
    try:
        if job.model is not None:
            models[job.key] = pickle.loads(job.model)  # noqa: S301  # as above
        if job.key not in models:
            return ModelWanted()
        models.move_to_end(job.key)
        while len(models) > MAX_MODELS:
            models.popitem(last=False)
        return models[job.key].shares(job.rows, job.places)
    except CannotExplainError as error:
        return error
    except Exception as error:  # foreign code on foreign data
        return CannotExplainError(f"explaining failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
