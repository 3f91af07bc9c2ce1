"""The one table from exception class to HTTP status. The first class that fits wins."""

from typing import Final

import orjson

from serve_app.domain import access, diff_report, errors, model_paths, recording, rollout_state, webhook, windows

Response = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers without content-length, body."""

STATUS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (errors.NotJsonError, 400),
    (errors.UnknownFamilyError, 404),
    (errors.UnknownVersionError, 404),
    (errors.NotOfferedError, 404),
    (model_paths.UnknownModelError, 404),
    (webhook.WebhooksOffError, 404),
    (webhook.ForgedDeliveryError, 401),
    (webhook.StaleDeliveryError, 401),
    (webhook.RepeatedDeliveryError, 409),
    (windows.UnknownEntityError, 404),
    (windows.NotReadyError, 409),
    (errors.PayloadTooLargeError, 413),
    (errors.UnsupportedMediaTypeError, 415),
    (errors.InvalidInputError, 422),
    (errors.RequestError, 400),
    (access.UnauthenticatedError, 401),
    (access.ForbiddenError, 403),
    (rollout_state.NoRolloutError, 404),
    (diff_report.NoShadowError, 404),
    (recording.NothingRecordedError, 409),
    (recording.ReplayError, 422),
    (rollout_state.RolloutTransitionError, 409),
    (rollout_state.CoolingDownError, 409),
    (rollout_state.RolloutConflictError, 409),
    (rollout_state.NoPlanError, 422),
    (errors.PinnedError, 409),
    (errors.ReloadDisabledError, 409),
    (errors.UnavailableError, 503),
    (errors.SourceError, 503),
    (errors.StoreError, 503),
    (errors.CannotExplainError, 501),
    (errors.PredictionError, 500),
    (errors.RefusedVersionError, 500),
)
JSON_HEADER: Final = (b"content-type", b"application/json")


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error; 500 for one that is not in the table."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_response(error: Exception) -> Response:
    """Build the answer `{"detail": …}`. An error that is none of ours is not shown: its text is for the log."""
    status = status_of(error)
    detail = str(error) if isinstance(error, errors.ServeAppError) else "internal error; the log has the details"
    headers = [JSON_HEADER]
    if isinstance(error, errors.UnavailableError):
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, access.UnauthenticatedError):
        headers.append((b"www-authenticate", b"Bearer"))
    return status, headers, orjson.dumps({"detail": detail})
