"""The exception tree.

An error carries its facts as attributes, says what was expected and what came, and knows nothing of HTTP.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name most like `name`, or an empty string."""
    matches = get_close_matches(name[:64], list(known), n=1, cutoff=0.6)  # a client may send a name of megabytes
    return f" (did you mean {matches[0]!r}?)" if matches else ""


class ServeAppError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(ServeAppError):
    """The configuration cannot be used; `problems` names every wrong key with its path."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class BundleError(ServeAppError):
    """A bundle is refused; `problems` lists all that is wrong with it, each with expected and found."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        super().__init__(f"bundle {where} is refused: " + "; ".join(self.problems))

    def __reduce__(self) -> tuple[type["BundleError"], tuple[str, tuple[str, ...]]]:
        return type(self), (self.where, self.problems)


class ManifestError(BundleError):
    """The manifest itself is not one: no JSON, a wrong type, a missing or an unknown key."""


class SourceError(ServeAppError):
    """A source of bundles cannot be read now; what is served stays as it is."""


class VersionNotFoundError(SourceError):
    """The source can be read, but has no such version; `known` are those it has."""

    def __init__(self, where: str, version: str, known: Sequence[str]) -> None:
        self.where = where
        self.version = version
        self.known = tuple(known)
        super().__init__(f"expected version {version!r} in {where}, found {', '.join(known) or 'no bundle'}")

    def __reduce__(self) -> tuple[type["VersionNotFoundError"], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.where, self.version, self.known)


class GoldenMismatchError(ServeAppError):
    """A loaded model does not reproduce the outputs stored in its bundle."""


class RequestError(ServeAppError):
    """A request cannot be answered because of what it says. The message is one sentence for the client."""


class NotJsonError(RequestError):
    """The body is not a JSON document."""


class PayloadTooLargeError(RequestError):
    """The body, or the number of rows in it, is above the configured limit."""


class UnsupportedMediaTypeError(RequestError):
    """The content type is none that this route reads."""


class InvalidInputError(RequestError):
    """The document does not fit the signature: shape, field or value."""


class UnknownFamilyError(RequestError):
    """No family of that name is configured."""

    def __init__(self, family: str, known: Sequence[str]) -> None:
        self.family = family
        self.known = tuple(known)
        super().__init__(
            f"unknown family {family!r}{nearest(family, known)}; this server has {', '.join(known) or 'none'}"
        )

    def __reduce__(self) -> tuple[type["UnknownFamilyError"], tuple[str, tuple[str, ...]]]:
        return type(self), (self.family, self.known)


class UnknownVersionError(RequestError):
    """The version that was asked for is not loaded for this family."""

    def __init__(self, family: str, version: str, known: Sequence[str]) -> None:
        self.family = family
        self.version = version
        self.known = tuple(known)
        super().__init__(f"version {version!r} of {family!r} is not loaded; loaded: {', '.join(known) or 'none'}")

    def __reduce__(self) -> tuple[type["UnknownVersionError"], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.family, self.version, self.known)


class NotOfferedError(RequestError):
    """The registered model or version that was named does not exist, or is not served by name."""


class RefusedVersionError(ServeAppError):
    """The version that was named cannot be served: its bundle was refused; the message says why."""


class UnavailableError(ServeAppError):
    """The request is good but cannot be answered now; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NoModelError(UnavailableError):
    """The family has no model yet."""


class OverloadedError(UnavailableError):
    """The queue in front of the model is full."""


class PredictionError(ServeAppError):
    """The model raised on these rows; the message says what, the log has the traceback."""


class CannotExplainError(ServeAppError):
    """Predictions of this version cannot be explained, or not by this server; the message says why."""


class StoreError(ServeAppError):
    """The state store cannot be used now; nothing has changed and predictions go on."""


class StaleRevisionError(StoreError):
    """Another writer changed the state first."""


class NotTheWriterError(StoreError):
    """Another process writes what only one may write; the message says who, where that is known."""


class TrialError(ServeAppError):
    """A bundle failed its trial. `blames_bundle` is False where the trial itself could not be held."""

    def __init__(self, message: str, *, blames_bundle: bool = True) -> None:
        self.blames_bundle = blames_bundle
        super().__init__(message)


class PinnedError(ServeAppError):
    """The configuration pins another version than the one asked for."""

    def __init__(self, family: str, pin: str) -> None:
        self.family = family
        self.pin = pin
        super().__init__(f"family {family!r} is pinned to {pin!r} by user_config; change the pin there")

    def __reduce__(self) -> tuple[type["PinnedError"], tuple[str, str]]:
        return type(self), (self.family, self.pin)


class ReloadDisabledError(ServeAppError):
    """The family's reload mode takes no calls."""


class ReloadError(ServeAppError):
    """A change of version failed; what was served before still is."""
