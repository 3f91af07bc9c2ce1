"""What a bundle claims of itself: its version, its files with their digests, how to load and how to check it."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_serializer,
    model_validator,
)

from serve_app.domain.errors import ManifestError, nearest
from serve_app.domain.signature import Signature
from serve_app.domain.validation import problems_of
from serve_app.domain.versions import parse_version

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_NESTING = 32
FORMAT_VERSION = 1


def _plain_path(path: str) -> str:
    """Accept a relative path that has one spelling only and stays below the bundle; see `problem_with_path`."""
    if problem := problem_with_path(path):
        raise ValueError(problem)
    return path


def problem_with_path(path: str) -> str | None:
    """Say why `path` cannot name a file of a bundle, with expected and found; None when it can."""
    expected = "expected a plain relative path such as 'models/a/model.joblib'"
    if not path:
        return f"{expected}, found an empty one"
    shown = repr(path if len(path) <= 160 else path[:160] + "…")
    if any(not character.isprintable() for character in path):
        return f"{expected}, found an unprintable character in {shown}"
    if "\\" in path:
        return f"{expected}, found a backslash in {shown}"
    if path.startswith("/"):
        return f"{expected}, found the absolute path {shown}"
    parts = path.split("/")
    if ".." in parts:
        return f"{expected}, found {shown}, which leaves the bundle"
    if "" in parts or "." in parts:
        return f"{expected}, found {shown}, which has an empty or '.' part"
    if len(path) > 1024 or any(len(part.encode()) > 255 for part in parts):
        return f"{expected} of at most 1024 characters (255 bytes a part), found one of {len(path)}: {shown}"
    return None


def _files_apart(digests: dict[str, str]) -> dict[str, str]:
    """Refuse no files at all, two spellings of one path, and a path that is both file and directory."""
    if not digests:
        raise ValueError("expected at least one file, found none")
    seen: dict[str, str] = {}
    problems: list[str] = []
    for path in digests:
        normal = unicodedata.normalize("NFC", path)
        if normal in seen:
            problems.append(f"expected each file once, found {seen[normal]!r} and {path!r}, which are the same path")
        seen[normal] = path
    for normal, path in seen.items():
        parts = normal.split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        problems += [f"expected {seen[a]!r} to be a file, found {path!r} below it" for a in sorted(above & seen.keys())]
    if problems:
        raise ValueError("; ".join(problems))
    return digests


def _digest(text: str) -> str:
    lowered = text.lower()
    if len(lowered) != 64 or any(c not in "0123456789abcdef" for c in lowered):
        shown = text if len(text) <= 80 else text[:80] + "…"
        raise ValueError(f"expected a sha256 of 64 hexadecimal digits, found {shown!r} ({len(text)} characters)")
    return lowered


def _directory_name(text: str) -> str:
    if not text or "/" in text or problem_with_path(text) is not None:
        raise ValueError(f"expected a name such as 'regression', found {text[:160]!r}")
    return text


def _moment(value: object) -> datetime:
    """Read an ISO 8601 time; one without an offset is taken as UTC."""
    if isinstance(value, datetime):
        moment = value
    else:
        expected = "expected a time such as '2026-01-30T09:00:00Z'"
        if not isinstance(value, str):
            raise ValueError(f"{expected}, found {value!r} ({type(value).__name__})")
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{expected}, found {value[:80]!r}") from None
    try:
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"expected a time within the years 1 to 9999 in UTC, found {value!r}") from None


BundlePath = Annotated[str, AfterValidator(_plain_path)]
Sha256 = Annotated[str, AfterValidator(_digest)]
Name = Annotated[str, AfterValidator(_directory_name)]
Version = Annotated[str, AfterValidator(parse_version)]
Moment = Annotated[datetime, BeforeValidator(_moment)]


class Sidecar(BaseModel):
    """What the promotion sidecar reads from the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll_interval_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30


class Golden(BaseModel):
    """Where samples with known outputs lie in the bundle, and how far a prediction may be from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: BundlePath = "golden.json"
    rtol: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    atol: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Manifest(BaseModel):
    """The parsed `manifest.json`. The first four fields make a valid one; the rest is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_version: Version
    models_type: Name
    created_at: Moment
    sha256: Annotated[dict[BundlePath, Sha256], AfterValidator(_files_apart)]
    sidecar: Sidecar | None = None
    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    family: Name | None = None
    loader: Name | None = None
    signature: Signature | None = None
    golden: Golden | None = None
    environment: dict[str, str] | None = None
    metrics: dict[str, JsonValue] | None = None
    training: dict[str, JsonValue] | None = None
    parent_version: Version | None = None

    @model_validator(mode="after")
    def _golden_is_listed(self) -> Self:
        if self.golden is not None and self.golden.path not in self.sha256:
            raise ValueError(f"expected sha256 to list the golden samples {self.golden.path!r}, found no such entry")
        return self

    @field_serializer("created_at")
    def _created_at_text(self, created_at: datetime) -> str:
        return created_at.isoformat().replace("+00:00", "Z")

    @classmethod
    def describing(cls, files: Mapping[str, bytes], **facts: Any) -> Self:
        """Make the manifest of `files` (relative path -> bytes); `facts` are the other fields.

        Raises:
            ManifestError: A path or a fact does not fit, with all problems.
        """
        return cls.of_digests({path: hashlib.sha256(files[path]).hexdigest() for path in sorted(files)}, **facts)

    @classmethod
    def of_digests(cls, sha256: Mapping[str, str], **facts: Any) -> Self:
        """Make a manifest of known digests; `facts` are the other fields.

        Raises:
            ManifestError: A path or a fact does not fit, with all problems.
        """
        try:
            return cls(sha256=dict(sha256), **facts)
        except ValidationError as error:
            raise ManifestError("to be written", problems_of(error, cls)) from error

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Self:
        """Read the bytes of a manifest; `where` names them in messages.

        Raises:
            ManifestError: With every problem of the document, each with expected and found.
        """
        is_sane, problems = _document_problems(raw)
        if not is_sane:
            raise ManifestError(where, problems)
        try:
            manifest = cls.model_validate_json(raw, strict=True)
        except ValidationError as error:
            raise ManifestError(where, [*problems, *problems_of(error, cls)]) from error
        if problems:
            raise ManifestError(where, problems)
        return manifest

    def to_bytes(self) -> bytes:
        """Return the JSON text: keys in their fixed order, files sorted, what is absent left out."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["sha256"] = dict(sorted(self.sha256.items()))
        return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def check_manifest(
    manifest: Manifest,
    *,
    models_type: str | None = None,
    family: str | None = None,
    loaders: Mapping[str, bool],
    default_loader: str,
    allowed_pickle_loaders: Collection[str],
) -> list[str]:
    """List what speaks against loading this bundle here; an empty list means nothing does.

    Args:
        manifest: What the bundle claims.
        models_type: The configured one; None accepts any.
        family: The family it is to serve; None accepts any, and so does a manifest that names none.
        loaders: The loaders that exist, and whether each may run code from a bundle (pickle).
        default_loader: Loads a bundle that names no loader.
        allowed_pickle_loaders: Loaders of that kind which the operator's config allows; a bundle never can.
    """
    problems: list[str] = []
    if models_type is not None and manifest.models_type != models_type:
        problems.append(f"models_type: expected {models_type!r}, found {manifest.models_type!r}")
    if family is not None and manifest.family is not None and manifest.family != family:
        problems.append(f"family: expected {family!r}, found {manifest.family!r}")
    loader = manifest.loader or default_loader
    if loader not in loaders:
        problems.append(
            f"loader: expected one of {', '.join(sorted(loaders))}, found {loader!r}{nearest(loader, loaders)}"
        )
    elif loaders[loader] and loader not in allowed_pickle_loaders:
        allowed = ", ".join(sorted(allowed_pickle_loaders)) or "none"
        problems.append(
            f"loader: expected one that the configuration allows to run code from a bundle ({allowed}), "
            f"found {loader!r}, which reads pickle"
        )
    return problems


def _document_problems(raw: bytes) -> tuple[bool, list[str]]:
    """Say whether `raw` is a JSON object fit for a look at its fields, and list what is wrong with it as a document."""
    if len(raw) > MAX_MANIFEST_BYTES:
        return False, [f"expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, found {len(raw)}"]
    problems: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        problems.extend(f"expected each key once, found {name!r} twice" for name in _doubles(name for name, _ in items))
        return dict(items)

    def constant(text: str) -> float:
        problems.append(f"expected a finite number, found {text}")
        return 0.0

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else constant(text[:40])

    try:
        document = json.loads(raw.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except RecursionError:
        return False, [f"expected at most {MAX_NESTING} levels of nesting, found many more"]
    except UnicodeDecodeError as error:
        return False, [f"expected JSON in UTF-8, found the byte 0x{raw[error.start]:02x} at position {error.start}"]
    except ValueError as error:
        return False, [f"expected a JSON document, found {_start_of(raw)}: {error}"]
    if not isinstance(document, dict):
        return False, [f"expected a JSON object, found a {type(document).__name__}: {_start_of(raw)}"]
    if (depth := _nesting(document)) > MAX_NESTING:
        return False, [*problems, f"expected at most {MAX_NESTING} levels of nesting, found {depth}"]
    return True, problems


def _doubles(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    doubles: dict[str, None] = {}
    for name in names:
        if name in seen:
            doubles[name] = None
        seen.add(name)
    return list(doubles)


def _start_of(raw: bytes) -> str:
    text = raw[:60].decode("utf-8", "replace")
    return f"{text!r}{'…' if len(raw) > 60 else ''}" if raw else "an empty file"


def _nesting(document: Any) -> int:
    """Count levels of objects and lists, without recursion."""
    deepest = 0
    waiting = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            deepest = max(deepest, depth)
            waiting.extend((part, depth + 1) for part in (value.values() if isinstance(value, dict) else value))
    return deepest
