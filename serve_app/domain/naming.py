"""Which models and versions of a registry clients may name, and the names by which the server knows them.

A client names a version of the family's own model (`version=3`), another registered model (`model=fraud`: what its own
alias or stage points at now), or a version of it (`model=fraud&version=3`).
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from serve_app.domain.errors import InvalidInputError, NotOfferedError
from serve_app.domain.versions import ModelVersion, parse_version, problem_with_version, qualified_version

MAX_MODEL_CHARACTERS = 256
"""What MLflow allows for the name of a registered model."""


@dataclass(frozen=True, slots=True)
class Named:
    """What was named. `model` None is the family's own, `version` None what the selector chooses of a model now."""

    model: str | None
    version: str | None

    @property
    def qualified(self) -> ModelVersion | None:
        """The name of the version everywhere in the server; None as long as the registry has to say which it is."""
        if self.version is None:
            return None
        return parse_version(self.version) if self.model is None else qualified_version(self.model, self.version)

    def __str__(self) -> str:
        return " ".join(part for part in (self.model, self.version and f"version {self.version}") if part)


@dataclass(frozen=True, slots=True)
class NamingRule:
    """What may be named of one family.

    Args:
        own_model: Name of its registered model; None: it has none, so only versions that are loaded can be named.
        other_models: Whether models beyond its own may be named.
        allowed_models: Patterns (`team-*`) of which one must fit the name of another model; empty: any name will do.
    """

    own_model: str | None = None
    other_models: bool = False
    allowed_models: tuple[str, ...] = ()

    def named(self, family: str, model: str | None, version: str | None) -> Named:
        """Read what a client names; an own model that is named is no other than one that is not.

        Raises:
            InvalidInputError: It cannot be the name of a model or of a version.
            NotOfferedError: The family does not serve that model.
        """
        if version is not None and (problem := problem_with_version(version)):
            raise InvalidInputError(f"'version': {problem}")
        if model is None or model == self.own_model:
            return Named(None, version)
        if not 0 < len(model) <= MAX_MODEL_CHARACTERS or not model.isprintable():
            raise InvalidInputError(
                f"'model': expected the name of a registered model of at most {MAX_MODEL_CHARACTERS} characters"
            )
        if self.own_model is None:
            raise NotOfferedError(f"family {family!r} has no model {model!r}: its versions come from no registry")
        if not self.offers(model):
            raise NotOfferedError(f"family {family!r} does not serve the registered model {model!r} by name")
        return Named(model, version)

    def offers(self, model: str) -> bool:
        """Say whether another model than the family's own may be named."""
        if not self.other_models:
            return False
        return not self.allowed_models or any(fnmatchcase(model, pattern) for pattern in self.allowed_models)


def parse_named(text: str) -> tuple[str, str | None]:
    """Read `<model>` or `<model>:<version>` as an operator writes it; a registered name has no colon.

    Raises:
        ValueError: What stands after the colon cannot name a version.
    """
    model, colon, version = text.partition(":")
    if not model or (colon and problem_with_version(version)):
        raise ValueError(f"expected <model> or <model>:<version>, found {text!r}")
    return model, version if colon else None
