"""A source of bundles in memory."""

from collections.abc import Collection, Sequence

from serve_app.domain.errors import VersionNotFoundError
from serve_app.domain.source_status import SourceStatus
from serve_app.domain.versions import CURRENT
from serve_app.usecases.ports import Bundle, BundleRef


class FakeBundleSource:
    """Holds what was published, newest last. Set `error` to make every call raise it."""

    def __init__(self, *bundles: Bundle) -> None:
        self.error: Exception | None = None
        self.remembers = False
        self.kept: tuple[str, ...] = ()
        self.n_fetched = 0
        self.n_chosen = 0
        self._chosen: dict[str, str] = {}
        self._bundles: dict[str, Bundle] = {}
        self._current: str | None = None
        for bundle in bundles:
            self.publish(bundle)

    def publish(self, bundle: Bundle, *, current: bool = True) -> None:
        """Add a version, and make it current unless told otherwise."""
        version = bundle.manifest.model_version
        self._bundles[version] = bundle
        if current:
            self._current = version

    def set_current(self, version: str) -> None:
        """Make a published version current."""
        self._current = self._bundles[version].manifest.model_version

    def current(self) -> BundleRef | None:
        """Return the current version; without one, the newest."""
        self._maybe_fail()
        version = self._current_version()
        return None if version is None else self._ref(self._bundles[version])

    def find(self, version: str) -> BundleRef:
        """Return one version."""
        self._maybe_fail()
        if version not in self._bundles:
            raise VersionNotFoundError("the fake source", version, sorted(self._bundles))
        return self._ref(self._bundles[version])

    def choose(self, model: str, version: str) -> None:
        """Let the selector point at a published version of another model."""
        self._chosen[model] = version

    def chosen(self, model: str) -> BundleRef:
        """Return what was chosen of another model."""
        self._maybe_fail()
        self.n_chosen += 1
        if model not in self._chosen:
            raise VersionNotFoundError("the fake source", model, ())
        return self.find(self._chosen[model])

    def remembered(self) -> BundleRef | None:
        """Return what `current` is, though the source be away, once `remembers` is set."""
        version = self._current_version()
        return self._ref(self._bundles[version]) if self.remembers and version is not None else None

    def keep(self, versions: Collection[str]) -> None:
        """Note them."""
        self.kept = tuple(versions)

    def status(self) -> SourceStatus:
        """Return the kind alone."""
        return SourceStatus(kind="fake")

    def versions(self) -> Sequence[BundleRef]:
        """List all, newest first."""
        self._maybe_fail()
        newest_first = sorted(self._bundles.values(), key=lambda bundle: bundle.manifest.created_at, reverse=True)
        return [self._ref(bundle) for bundle in newest_first]

    def fetch(self, version: str) -> Bundle:
        """Return one version."""
        self._maybe_fail()
        self.n_fetched += 1
        wanted = self._current_version() if version == CURRENT else version
        if wanted is None or wanted not in self._bundles:
            raise VersionNotFoundError("the fake source", version, sorted(self._bundles))
        return self._bundles[wanted]

    def _current_version(self) -> str | None:
        newest = max(self._bundles.values(), key=lambda bundle: bundle.manifest.created_at, default=None)
        return self._current or (newest.manifest.model_version if newest else None)

    def _ref(self, bundle: Bundle) -> BundleRef:
        version = bundle.manifest.model_version
        return BundleRef(version, bundle.digest, bundle.location, is_current=version == self._current_version())

    def _maybe_fail(self) -> None:
        if self.error is not None:
            raise self.error
