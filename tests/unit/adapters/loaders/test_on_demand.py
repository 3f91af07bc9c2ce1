"""Libraries of a loader are imported when a bundle asks for it, and its permissions are known before."""

import subprocess
import sys

import pytest

from serve_app.adapters.loaders import LOADERS, loaders_with
from serve_app.adapters.loaders.mlflow_model import MlflowLoader
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.adapters.loaders.on_demand import OnDemandLoader
from serve_app.adapters.loaders.sklearn_targets import SklearnTargetsLoader
from serve_app.domain.errors import BundleError
from serve_app.usecases.ports import Loader
from tests import builders
from tests.fakes.loader import FakeLoader


def test_loaders_import_no_model_library() -> None:
    code = """if True:
        import sys
        import serve_app.deployments.model_replica
        print([name for name in ("sklearn", "scipy", "treelite", "torch", "mlflow") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_loader_refuses_a_bundle_without_a_model(name: str) -> None:
    with pytest.raises(BundleError):
        LOADERS[name].load(builders.bundle({"notes.txt": b"nothing to load"}, loader=name))


def test_what_a_loader_may_do_is_what_is_told_before_it_is_made() -> None:
    assert LOADERS["sklearn_targets"].uses_pickle == SklearnTargetsLoader().uses_pickle
    for formats in (("skops",), ("skops", "pickle")):
        settings = MlflowLoaderSettings(formats=formats)
        assert loaders_with(settings)["mlflow"].uses_pickle == MlflowLoader(settings).uses_pickle


def test_it_is_made_once() -> None:
    made: list[Loader] = []

    def make() -> Loader:
        made.append(FakeLoader())
        return made[-1]

    loader = OnDemandLoader(make, uses_pickle=False)
    assert made == []
    for _ in range(2):
        loader.load(builders.bundle({"notes.txt": b"nothing to load"}))
    assert len(made) == 1
