"""What turns a bundle into a predictor, by the name that a manifest or the configuration uses."""

from collections.abc import Mapping

from serve_app.adapters.loaders.mlflow_model import MlflowLoader
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.adapters.loaders.sklearn_targets import SklearnTargetsLoader
from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.config import MlflowModelsConfig
from serve_app.usecases.ports import Loader


def loaders_with(mlflow: MlflowLoaderSettings) -> Mapping[str, Loader]:
    """Return all loaders, with what the operator allows the one for models of MLflow."""
    return {"sklearn_targets": SklearnTargetsLoader(), "mlflow": MlflowLoader(mlflow), "torch": TorchLoader()}


def make_loaders(config: MlflowModelsConfig) -> Mapping[str, Loader]:
    """Return all loaders as they are configured."""
    return loaders_with(MlflowLoaderSettings(config.formats, config.trusted_types, config.environment_mismatch))


LOADERS: Mapping[str, Loader] = loaders_with(MlflowLoaderSettings())
"""The loaders as they are where nothing else is configured."""
