"""What turns a bundle into a predictor, by the name that a manifest or the configuration uses."""

from collections.abc import Mapping

from serve_app.adapters.loaders.sklearn_targets import SklearnTargetsLoader
from serve_app.usecases.ports import Loader

LOADERS: Mapping[str, Loader] = {"sklearn_targets": SklearnTargetsLoader()}
