"""What turns a bundle into a predictor, by the name that a manifest or the configuration uses."""

from collections.abc import Mapping

from serve_app.adapters.explain_process import ExplainProcess
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.adapters.loaders.on_demand import OnDemandLoader
from serve_app.adapters.loaders.tft.torch_loader import TorchLoader
from serve_app.adapters.torch_device import CPU, Device
from serve_app.config import MlflowModelsConfig
from serve_app.usecases.ports import Loader


def loaders_with(mlflow: MlflowLoaderSettings, device: Device = CPU) -> Mapping[str, Loader]:
    """Return all loaders, with what the operator allows the one for models of MLflow, and the device for torch."""
    explaining = ExplainProcess()  # one for all models of the process that loads them

    def of_sklearn() -> Loader:
        from serve_app.adapters.loaders.sklearn_targets import SklearnTargetsLoader

        return SklearnTargetsLoader(explaining)

    def of_mlflow() -> Loader:
        from serve_app.adapters.loaders.mlflow_model import MlflowLoader

        return MlflowLoader(mlflow, explaining)

    return {
        "sklearn_targets": OnDemandLoader(of_sklearn, uses_pickle=True),  # joblib is pickle
        "mlflow": OnDemandLoader(of_mlflow, uses_pickle=mlflow.uses_pickle),
        "torch": TorchLoader(device),
    }


def make_loaders(config: MlflowModelsConfig, device: Device = CPU) -> Mapping[str, Loader]:
    """Return all loaders as they are configured; models are tried on the CPU, and served on the pool's device."""
    settings = MlflowLoaderSettings(config.formats, config.trusted_types, config.environment_mismatch)
    return loaders_with(settings, device)


LOADERS: Mapping[str, Loader] = loaders_with(MlflowLoaderSettings())
"""The loaders as they are where nothing else is configured."""
