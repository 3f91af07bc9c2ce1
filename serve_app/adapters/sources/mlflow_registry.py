"""Bundles out of a model registry of MLflow, served from copies on this node."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from serve_app.adapters.bundle_reader import DEFAULT_MAX_BYTES
from serve_app.adapters.clock import SystemClock
from serve_app.adapters.model_environment import recorded_environment
from serve_app.adapters.sources.copied_files import size_of
from serve_app.adapters.sources.local_copies import FILES, LocalCopies, LocalCopy, RegistryFacts
from serve_app.adapters.sources.registry_client import READY, NotRegisteredError, RegisteredVersion, RegistryClient
from serve_app.adapters.sources.registry_settings import RegistrySettings, Selector
from serve_app.domain.errors import ManifestError, SourceError, VersionNotFoundError
from serve_app.domain.manifest import Manifest
from serve_app.domain.source_status import SourceStatus
from serve_app.domain.versions import CURRENT, problem_with_qualified, qualified_version, split_version
from serve_app.usecases.ports import Bundle, BundleRef, Clock

KIND = "mlflow_registry"
LOADER = "mlflow"


class MlflowRegistrySource:
    """A `BundleSource` over one registered model, and over any other of the same registry by `<model>:<version>`.

    A version is copied once to this node, with a manifest made of the files that came; from then on it is a bundle
    like any other and needs no registry. The manifest holds nothing that may change, so that two nodes make the same
    bytes; what may (stage, aliases, metrics of the run) lies beside it and is added to what `fetch` and the
    references tell.
    """

    def __init__(self, settings: RegistrySettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._client = RegistryClient(
            settings.tracking_uri, timeout_s=settings.timeout_s, artifacts_timeout_s=settings.artifacts_timeout_s
        )
        self._copies = LocalCopies(
            settings.cache_dir,
            max_bytes=settings.max_cache_bytes,
            patience_s=settings.artifacts_timeout_s + settings.timeout_s,
        )
        self._status_lock = threading.Lock()
        self._status = SourceStatus(kind=KIND, name=settings.model, selector=str(settings.selector))

    def current(self) -> BundleRef | None:
        """Ask the registry now, copy what it chooses if that is not here, and remember it.

        None while the model has no version. A version whose files are still being uploaded is no news: the answer
        stays what it was.

        Raises:
            SourceError: The registry is away, has no such model, alias, stage or version, or its files cannot be had.
        """
        settings = self._settings
        with self._noted():
            found = self._client.resolve(settings.model, settings.selector)
            if found is None:
                ref = None
            elif found.status == READY:
                copy = self._copied(found)
                self._copies.remember(copy, _mark(settings.selector))
                ref = self._ref(copy, self._known_facts(copy, found), is_current=True)
            else:
                ref = self._chosen_before()
                if ref is None:
                    raise SourceError(f"expected {found.uri} to be READY, found {found.status}")
        self._note_current(ref)
        return ref

    def remembered(self) -> BundleRef | None:
        """Return what `current` last answered, from this node, without asking the registry."""
        ref = self._chosen_before()
        if ref is not None:
            self._note_current(ref)
        return ref

    def find(self, version: str) -> BundleRef:
        """Find one version and copy it if it is not here; a copy is enough while the registry is away.

        Raises:
            VersionNotFoundError: The registry has no such version.
            SourceError: It cannot be had now.
        """
        model, number = self._named(version)
        try:
            with self._noted():
                found = self._version(model, number, version)
        except VersionNotFoundError:
            raise
        except SourceError:
            copy = self._copies.find(model, number)
            if copy is None or not self._is_ours(copy):
                raise
            return self._ref(copy, self._copies.facts(copy))
        with self._noted():
            copy = self._copied(found)
            return self._ref(copy, self._known_facts(copy, found))

    def chosen(self, model: str) -> BundleRef:
        """Ask the registry what the family's selector chooses of another model now, and copy that if it is not here.

        The choice is not remembered on this node: its copy would never leave.

        Raises:
            VersionNotFoundError: There is no such model, or nothing of it is chosen.
            SourceError: The registry is away, or the files cannot be had.
        """
        selector = self._settings.selector
        with self._noted():
            try:
                found = self._client.resolve(model, selector)
            except NotRegisteredError as error:
                raise VersionNotFoundError(self._where, f"{model} ({selector})", error.known) from error
            if found is None:
                raise VersionNotFoundError(self._where, f"{model} ({selector})", ())
            if found.status != READY:
                raise SourceError(f"expected {found.uri} to be READY, found {found.status}")
            copy = self._copied(found)
            return self._ref(copy, self._known_facts(copy, found))

    def versions(self) -> Sequence[BundleRef]:
        """List the READY versions of the family's model, newest first; while the registry is away, the copies of it.

        A version that was not copied yet has an empty fingerprint.
        """
        settings = self._settings
        try:
            with self._noted():
                registered = [found for found in self._client.versions(settings.model) if found.status == READY]
                chosen = self._chosen_among(registered)
        except NotRegisteredError:
            raise
        except SourceError:
            copies = self._copies.all_of(settings.model)
            if not copies:
                raise
            copies.sort(key=lambda copy: copy.manifest.created_at, reverse=True)
            return [self._ref(copy, self._copies.facts(copy)) for copy in copies]
        return [self._listed(found, is_current=found.version == chosen) for found in registered]

    def fetch(self, version: str) -> Bundle:
        """Read and verify one version, or `"current"`; one that was copied needs no registry.

        Raises:
            BundleError: The copy is damaged; it is dropped, and the next call copies the version anew.
            SourceError: There is no such version, or it cannot be had now.
        """
        if version == CURRENT:
            ref = self.current()
            if ref is None:
                raise SourceError(f"expected a version of the model {self._settings.model!r}, found none yet")
            version = ref.version
        model, number = self._named(version)
        copy = self._copies.find(model, number)
        if copy is None or not self._is_ours(copy):
            with self._noted():
                copy = self._copied(self._version(model, number, version))
        bundle = self._copies.read(model, number)
        facts = self._copies.facts(copy)
        if facts is None:
            return bundle
        told = {"metrics": dict(facts.metrics), "training": dict(facts.params)}
        return replace(bundle, manifest=bundle.manifest.model_copy(update=told))

    def keep(self, versions: Collection[str]) -> None:
        """Hold the copies of these versions, for all processes of this node; drop others if they are too much."""
        self._copies.keep([self._named(version) for version in versions if problem_with_qualified(version) is None])

    def status(self) -> SourceStatus:
        """Return what was known after the last access."""
        return self._status

    @property
    def _where(self) -> str:
        return f"the registry at {self._client.uri}"

    def _chosen_before(self) -> BundleRef | None:
        model, selector = self._settings.model, self._settings.selector
        if selector.kind == "version":
            copy = self._copies.find(model, selector.value)
        else:
            copy = self._copies.remembered(model, _mark(selector))
        return None if copy is None or not self._is_ours(copy) else self._ref(copy, self._copies.facts(copy))

    def _chosen_among(self, registered: Sequence[RegisteredVersion]) -> str | None:
        """Return the number that the selector chooses; None where it chooses none, which is no reason to list none."""
        try:
            chosen = self._client.resolve(self._settings.model, self._settings.selector) if registered else None
        except NotRegisteredError:
            return None
        return None if chosen is None else chosen.version

    def _version(self, model: str, number: str, asked: str) -> RegisteredVersion:
        try:
            found = self._client.version(model, number)
        except NotRegisteredError as error:
            known = [_name(self._settings.model, model, number) for number in error.known]
            raise VersionNotFoundError(self._where, asked, known) from error
        if found.status != READY:
            raise SourceError(f"expected {found.uri} to be READY, found {found.status}")
        return found

    def _copied(self, found: RegisteredVersion) -> LocalCopy:
        """Return the copy of a version on this node, made now if it is not there."""

        def fill(into: Path) -> None:
            self._client.download(found, into, max_bytes=DEFAULT_MAX_BYTES)

        def describe(copied: Path, sha256: Mapping[str, str]) -> Manifest:
            try:
                return Manifest.of_digests(
                    sha256,
                    model_version=_name(self._settings.model, found.model, found.version),
                    models_type=self._settings.models_type,
                    created_at=found.created_at,
                    loader=LOADER,
                    environment=recorded_environment(partial(_content, copied / FILES)) or None,
                )
            except ManifestError as error:
                raise SourceError(f"{found.uri} cannot be copied: {'; '.join(error.problems)}") from error

        def is_same(manifest: Manifest) -> bool:
            # A registry that was made anew counts from 1 again; the time tells the two versions 1 apart.
            return manifest.created_at == found.created_at and manifest.models_type == self._settings.models_type

        return self._copies.make(found.model, found.version, is_same=is_same, fill=fill, describe=describe)

    def _is_ours(self, copy: LocalCopy) -> bool:
        """Say whether a copy is one for this family; another family may have had the directory before."""
        name = _name(self._settings.model, copy.model, copy.version)
        return (copy.manifest.model_version, copy.manifest.models_type) == (name, self._settings.models_type)

    def _known_facts(self, copy: LocalCopy, found: RegisteredVersion) -> RegistryFacts:
        """Return what the registry tells of a version; its run is asked only when something else has changed."""
        before = self._copies.facts(copy)
        now = {"stage": found.stage, "aliases": found.aliases, "updated_at_s": found.updated_at_s}
        if before is not None and before.model_dump(include=set(now)) == now:
            return before
        run = self._client.run_facts(found)
        fresh = RegistryFacts(
            model=found.model,
            version=found.version,
            uri=found.uri,
            run_id=found.run_id,
            source=found.source,
            metrics=dict(run.metrics),
            params=dict(run.params),
            **now,
        )
        self._copies.write_facts(copy, fresh)
        return fresh

    def _ref(self, copy: LocalCopy, told: RegistryFacts | None, *, is_current: bool | None = None) -> BundleRef:
        facts = copy.manifest.model_dump(mode="json", exclude_none=True, exclude={"sha256", "model_version"})
        facts["files"] = len(copy.manifest.sha256)
        facts["size_bytes"] = size_of(copy.directory / FILES)
        facts["modified_at_s"] = copy.manifest.created_at.timestamp()
        if told is not None:
            facts |= _facts_of(told)
        if is_current is None:
            chosen = self._copies.remembered(self._settings.model, _mark(self._settings.selector))
            is_current = chosen is not None and chosen.directory == copy.directory
        return BundleRef(
            copy.manifest.model_version, copy.digest, str(copy.directory), is_current=is_current, facts=facts
        )

    def _listed(self, found: RegisteredVersion, *, is_current: bool) -> BundleRef:
        copy = self._copies.find(found.model, found.version)
        if copy is not None and self._is_ours(copy):
            return self._ref(copy, self._copies.facts(copy), is_current=is_current)
        facts = {
            "created_at": found.created_at.isoformat().replace("+00:00", "Z"),
            "models_type": self._settings.models_type,
            "modified_at_s": found.updated_at_s,
            "model_uri": found.uri,
            "name": found.model,
            "stage": found.stage,
            "run_id": found.run_id,
        }
        name = _name(self._settings.model, found.model, found.version)
        return BundleRef(name, "", found.uri, is_current=is_current, facts=facts)

    def _named(self, version: str) -> tuple[str, str]:
        """Read a version's name: of the family's model, or `<model>:<version>` of another.

        Raises:
            VersionNotFoundError: It can name no version.
        """
        if problem_with_qualified(version):
            raise VersionNotFoundError(self._where, version, ())
        model, number = split_version(version)
        return model or self._settings.model, number

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Let the status tell how an access to the registry went."""
        try:
            yield
        except VersionNotFoundError:  # the registry is well, the question was not
            self._note_answer()
            raise
        except SourceError as error:
            with self._status_lock:
                self._status = self._status.model_copy(update={"status": "error", "last_error": str(error)})
            raise
        self._note_answer()

    def _note_answer(self) -> None:
        was_well = self._status.status == "ok"
        server_version = self._status.server_version if was_well else self._server_version()
        update = {
            "status": "ok",
            "last_error": None,
            "verified_at_s": self._clock.now_s(),
            "server_version": server_version,
        }
        with self._status_lock:
            self._status = self._status.model_copy(update=update)

    def _note_current(self, ref: BundleRef | None) -> None:
        facts = {} if ref is None else ref.facts
        update = {
            "version": None if ref is None else ref.version,
            "model_uri": facts.get("model_uri"),
            "stage": facts.get("stage"),
        }
        with self._status_lock:
            self._status = self._status.model_copy(update=update)

    def _server_version(self) -> str | None:
        try:
            return self._client.server_version()
        except SourceError:  # nobody needs it so much that an answer is thrown away for it
            return None


def _facts_of(told: RegistryFacts) -> dict[str, Any]:
    return {
        "modified_at_s": told.updated_at_s,
        "model_uri": told.uri,
        "name": told.model,
        "stage": told.stage,
        "aliases": list(told.aliases),
        "run_id": told.run_id,
        "metrics": dict(told.metrics),
        "training": dict(told.params),
    }


def _mark(selector: Selector) -> str:
    """Name what a selector chooses apart from what another of the same word does."""
    return f"{selector.kind}.{selector.value}" if selector.value else selector.kind


def _name(main_model: str, model: str, number: str) -> str:
    return number if model == main_model else qualified_version(model, number)


def _content(directory: Path, name: str) -> bytes:
    """Return a file's content, empty where it cannot be read."""
    try:
        return (directory / name).read_bytes()
    except OSError:
        return b""
