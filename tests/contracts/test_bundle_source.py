"""What every source of bundles promises, run over the fake and the real ones; the registry is a real MLflow server."""

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.adapters.sources.mlflow_registry import MlflowRegistrySource
from serve_app.adapters.sources.registry_settings import RegistrySettings, Selector
from serve_app.domain.errors import SourceError, VersionNotFoundError
from serve_app.usecases.ports import Bundle, BundleSource
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.mlflow_server import MlflowServer

PATH = "models/a/regression/model.joblib"


class Stage(Protocol):
    """A source, and the means to publish into it."""

    source: BundleSource

    def publish(self, content: bytes, *, current: bool = True) -> str:
        """Publish a bundle of one file, made a day after the last one; return the name of its version."""
        ...


class FakeStage:
    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.source = FakeBundleSource()
        self._days = count()

    def publish(self, content: bytes, *, current: bool = True) -> str:
        made = _bundle(content, next(self._days))
        self.source.publish(made, current=current)
        return made.manifest.model_version


class DirectoryStage:
    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._root: Path = request.getfixturevalue("tmp_path")
        self._days = count()
        self.source = LocalDirectorySource(self._root)

    def publish(self, content: bytes, *, current: bool = True) -> str:
        made = _bundle(content, next(self._days))
        write_bundle(self._root, made.manifest, made.files)
        if current:
            set_current(self._root, made.manifest.model_version)
        return made.manifest.model_version


class AliasStage:
    """A registered model of the test's own, of which the version with an alias is current."""

    selector = Selector("alias", "champion")

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._server: MlflowServer = request.getfixturevalue("mlflow_server")
        self._model = f"contract-{uuid4().hex}"
        self._server.client.create_registered_model(self._model)
        self.source = MlflowRegistrySource(
            RegistrySettings(
                family="forecaster",
                models_type="regression",
                tracking_uri=self._server.uri,
                model=self._model,
                selector=self.selector,
                cache_dir=request.getfixturevalue("tmp_path") / "copies",
            )
        )

    def publish(self, content: bytes, *, current: bool = True) -> str:
        alias = self.selector.value if current else None
        return self._server.register_files(self._model, {PATH: content}, alias=alias)


class NewestStage(AliasStage):
    selector = Selector("newest")


def _bundle(content: bytes, days: int) -> Bundle:
    created_at = builders.CREATED_AT + timedelta(days=days)
    # Names in another order than the times: what is newest is no question of names.
    return builders.bundle({PATH: content}, model_version=f"v{9 - days}", created_at=created_at)


@pytest.fixture(params=[FakeStage, DirectoryStage, AliasStage])
def stage(request: pytest.FixtureRequest) -> Stage:
    make: Callable[[pytest.FixtureRequest], Stage] = request.param
    return make(request)


@pytest.fixture(params=[FakeStage, DirectoryStage, NewestStage])
def stage_without_choice(request: pytest.FixtureRequest) -> Stage:
    make: Callable[[pytest.FixtureRequest], Stage] = request.param
    return make(request)


def content_of(source: BundleSource, version: str) -> bytes:
    (content,) = source.fetch(version).files.values()
    return content


def test_empty_source_has_no_current_and_no_versions(stage: Stage) -> None:
    assert stage.source.current() is None
    assert stage.source.versions() == []
    assert stage.source.remembered() is None


def test_fetching_current_from_an_empty_source_is_an_error(stage: Stage) -> None:
    with pytest.raises(SourceError, match="found no"):
        stage.source.fetch("current")


def test_published_version_is_current_and_can_be_fetched(stage: Stage) -> None:
    version = stage.publish(b"first")
    ref = stage.source.current()
    assert ref is not None
    assert (ref.version, ref.is_current) == (version, True)
    assert content_of(stage.source, "current") == content_of(stage.source, version) == b"first"
    bundle = stage.source.fetch(version)
    assert (bundle.manifest.model_version, bundle.digest) == (version, ref.fingerprint)


def test_current_is_what_was_made_current_not_the_newest(stage: Stage) -> None:
    older = stage.publish(b"first")
    newer = stage.publish(b"second", current=False)
    assert [(ref.version, ref.is_current) for ref in stage.source.versions()] == [(newer, False), (older, True)]
    assert content_of(stage.source, "current") == b"first"


def test_without_a_choice_the_newest_is_current(stage_without_choice: Stage) -> None:
    source = stage_without_choice.source
    versions = [stage_without_choice.publish(content, current=False) for content in (b"first", b"second", b"third")]
    ref = source.current()
    assert ref is not None
    assert ref.version == versions[-1]
    assert [ref.version for ref in source.versions()] == versions[::-1]
    assert content_of(source, "current") == b"third"


def test_older_version_can_still_be_found_and_fetched(stage: Stage) -> None:
    older = stage.publish(b"first")
    first = stage.source.current()
    newer = stage.publish(b"second")
    second = stage.source.current()
    assert first is not None
    assert second is not None
    assert first.fingerprint != second.fingerprint
    assert content_of(stage.source, older) == b"first"
    found = stage.source.find(older)
    assert (found.version, found.fingerprint, found.is_current) == (older, first.fingerprint, False)
    assert stage.source.find(newer) == second


@pytest.mark.parametrize("version", ["v9.1", "99", "../v1", "", "staging"])
def test_unknown_version_is_an_error(stage: Stage, version: str) -> None:
    stage.publish(b"first")
    with pytest.raises(SourceError, match="expected"):
        stage.source.fetch(version)
    with pytest.raises(SourceError, match="expected"):
        stage.source.find(version)


def test_unknown_version_names_the_known_ones(stage: Stage) -> None:
    version = stage.publish(b"first")
    with pytest.raises(VersionNotFoundError) as caught:
        stage.source.find("99")
    assert list(caught.value.known) == [version]


def test_nothing_is_chosen_of_a_model_that_is_not_there(stage: Stage) -> None:
    stage.publish(b"first")
    with pytest.raises(VersionNotFoundError):
        stage.source.chosen("no-such-model")
    assert stage.source.status().status != "error"


def test_asking_twice_gives_the_same_answer(stage: Stage) -> None:
    version = stage.publish(b"first")
    assert stage.source.current() == stage.source.current()
    assert stage.source.fetch(version) == stage.source.fetch(version)


def test_live_versions_stay(stage: Stage) -> None:
    older = stage.publish(b"first")
    stage.source.current()
    newer = stage.publish(b"second")
    stage.source.current()
    stage.source.keep([older, newer])
    assert [content_of(stage.source, version) for version in (older, newer)] == [b"first", b"second"]


def test_status_names_the_kind_of_source(stage: Stage) -> None:
    before = stage.source.status()
    assert before.kind
    stage.publish(b"first")
    stage.source.current()
    assert stage.source.status().kind == before.kind
    assert stage.source.status().status != "error"
