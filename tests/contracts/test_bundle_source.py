"""What every source of bundles promises, run over the fake and the real one."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest

from serve_app.adapters.bundle_writer import set_current, write_bundle
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.domain.errors import SourceError
from serve_app.usecases.ports import Bundle, BundleSource
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource


class Stage(Protocol):
    """A source, and the means to publish into it."""

    source: BundleSource

    def publish(self, bundle: Bundle, *, current: bool) -> None: ...


class FakeStage:
    def __init__(self, _: Path) -> None:
        self.source = FakeBundleSource()

    def publish(self, bundle: Bundle, *, current: bool) -> None:
        self.source.publish(bundle, current=current)


class DirectoryStage:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.source = LocalDirectorySource(root)

    def publish(self, bundle: Bundle, *, current: bool) -> None:
        write_bundle(self._root, bundle.manifest, bundle.files)
        if current:
            set_current(self._root, bundle.manifest.model_version)


@pytest.fixture(params=[FakeStage, DirectoryStage])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    make: Callable[[Path], Stage] = request.param
    return make(tmp_path)


def bundle(version: str, *, days: int = 0) -> Bundle:
    content = {"models/a/regression/model.joblib": version.encode()}
    return builders.bundle(content, model_version=version, created_at=builders.CREATED_AT + timedelta(days=days))


def test_empty_source_has_no_current_and_no_versions(stage: Stage) -> None:
    assert stage.source.current() is None
    assert stage.source.versions() == []


def test_fetching_current_from_an_empty_source_is_an_error(stage: Stage) -> None:
    with pytest.raises(SourceError, match="found no"):
        stage.source.fetch("current")


def test_published_version_is_current_and_can_be_fetched(stage: Stage) -> None:
    published = bundle("v1")
    stage.publish(published, current=True)
    ref = stage.source.current()
    assert ref is not None
    assert (ref.version, ref.is_current) == ("v1", True)
    assert stage.source.fetch("current").files == published.files
    assert stage.source.fetch("v1").manifest == published.manifest


def test_current_is_what_was_made_current_not_the_newest(stage: Stage) -> None:
    stage.publish(bundle("v1", days=0), current=True)
    stage.publish(bundle("v2", days=1), current=False)
    assert [(ref.version, ref.is_current) for ref in stage.source.versions()] == [("v2", False), ("v1", True)]
    assert stage.source.fetch("current").manifest.model_version == "v1"


def test_without_a_choice_the_newest_is_current(stage: Stage) -> None:
    stage.publish(bundle("b", days=1), current=False)
    stage.publish(bundle("a", days=2), current=False)
    stage.publish(bundle("c", days=0), current=False)
    ref = stage.source.current()
    assert ref is not None
    assert ref.version == "a"
    assert [ref.version for ref in stage.source.versions()] == ["a", "b", "c"]


def test_older_version_can_still_be_fetched(stage: Stage) -> None:
    stage.publish(bundle("v1"), current=True)
    stage.publish(bundle("v2", days=1), current=True)
    assert stage.source.fetch("v1").files == bundle("v1").files


@pytest.mark.parametrize("version", ["v9", "../v1", "", "staging"])
def test_unknown_version_is_an_error(stage: Stage, version: str) -> None:
    stage.publish(bundle("v1"), current=True)
    with pytest.raises(SourceError, match="expected"):
        stage.source.fetch(version)


def test_asking_twice_gives_the_same_answer(stage: Stage) -> None:
    stage.publish(bundle("v1"), current=True)
    assert stage.source.current() == stage.source.current()
    assert stage.source.fetch("v1") == stage.source.fetch("v1")
