"""The loader `torch`: `config.json`, `model.safetensors` and `server_mapping.json`. Nothing in them can run code."""

import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from serve_app.domain.errors import BundleError, ConfigError
from serve_app.domain.validation import problems_of
from serve_app.usecases.ports import Bundle

if TYPE_CHECKING:
    from serve_app.adapters.loaders.tft.predictor import TftPredictor

CONFIG, WEIGHTS, SERVERS = "config.json", "model.safetensors", "server_mapping.json"


class TorchLoader:
    """Loads torch models without pickle. `device` is torch's name of where they run, `cpu` or `cuda`."""

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = device

    @property
    def uses_pickle(self) -> bool:
        """False: the weights are numbers, the rest is JSON."""
        return False

    def load(self, bundle: Bundle) -> "TftPredictor":
        """Build the network that `config.json` describes and fill it.

        Raises:
            BundleError: A file is missing or does not fit the others, with all problems.
            ConfigError: The device that the operator asked for is not there.
        """
        problems = [
            f"{path}: expected it in the manifest, found none"
            for path in (CONFIG, WEIGHTS, SERVERS)
            if path not in bundle.files
        ]
        config, config_problems = _config(bundle.files.get(CONFIG))
        mapping, mapping_problems = _mapping(bundle.files.get(SERVERS))
        problems += [*config_problems, *mapping_problems]
        if problems or config is None or mapping is None:
            raise BundleError(bundle.location, problems)
        # Here, because only processes that serve such a model need torch: seconds and some hundred megabytes.
        import torch

        from serve_app.adapters.loaders.tft.forecaster import TftForecaster
        from serve_app.adapters.loaders.tft.predictor import TftPredictor
        from serve_app.adapters.loaders.tft.weights import put_weights

        device = torch.device(self._device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError([f"device: expected one that torch can use, found {self._device!r} and no CUDA here"])
        forecaster = TftForecaster(config, len(mapping.servers))
        problems = [f"{WEIGHTS}: {problem}" for problem in put_weights(forecaster, bundle.files[WEIGHTS])]
        signature = bundle.manifest.signature
        if signature is not None and signature != config.signature():
            problems.append(f"signature: expected the columns that {CONFIG} describes, found others")
        if problems:
            raise BundleError(bundle.location, problems)
        forecaster.eval().requires_grad_(False).to(device)
        return TftPredictor(forecaster, mapping, artifact_bytes=sum(map(len, bundle.files.values())))


def _config(raw: bytes | None) -> tuple[TftConfig | None, list[str]]:
    if raw is None:
        return None, []
    try:
        return TftConfig.model_validate(json.loads(raw)), []
    except ValidationError as error:
        return None, [f"{CONFIG}: {problem}" for problem in problems_of(error, TftConfig)]
    except (ValueError, RecursionError) as error:
        return None, [f"{CONFIG}: expected JSON, found: {error}"]


def _mapping(raw: bytes | None) -> tuple[ServerMapping | None, list[str]]:
    if raw is None:
        return None, []
    try:
        return ServerMapping.parse(raw), []
    except (ValueError, RecursionError) as error:
        return None, [f"{SERVERS}: {error}"]
