"""The loader `torch`: `config.json`, `model.safetensors` and `server_mapping.json`. Nothing in them can run code."""

import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from serve_app.adapters.loaders.tft.tft_config import TftConfig
from serve_app.adapters.torch_device import CPU, Device, set_precision
from serve_app.domain.errors import BundleError
from serve_app.domain.validation import problems_of
from serve_app.usecases.ports import Bundle

if TYPE_CHECKING:
    from serve_app.adapters.loaders.tft.predictor import TftPredictor

CONFIG, WEIGHTS, SERVERS = "config.json", "model.safetensors", "server_mapping.json"
THREADS = 1
"""Of torch, for one call. A replica has several calls at once, each in a thread of its own: it uses two cores anyway.

With 2, one thread spins at every layer until the other comes. On two busy cores 1,000 windows took 2.1 to 2.9 s of
processor time with 2, and 1.8 to 2.2 s with 1; what is spun away is taken from the requests of other families.
"""


class TorchLoader:
    """Loads torch models without pickle, for the device and with the precision that the pool has.

    `threads` are torch's for one call on a CPU; they count for all of the process.
    """

    def __init__(self, device: Device = CPU, *, threads: int = THREADS) -> None:
        self._device = device
        self._threads = threads

    @property
    def uses_pickle(self) -> bool:
        """False: the weights are numbers, the rest is JSON."""
        return False

    def load(self, bundle: Bundle) -> "TftPredictor":
        """Build the network that `config.json` describes and fill it.

        Raises:
            BundleError: A file is missing or does not fit the others, with all problems.
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

        torch.set_num_threads(self._threads)  # for threads that begin to use torch after this; a call's thread does
        forecaster = TftForecaster(config, len(mapping.servers))
        problems = [f"{WEIGHTS}: {problem}" for problem in put_weights(forecaster, bundle.files[WEIGHTS])]
        signature = bundle.manifest.signature
        if signature is not None and signature != config.signature():
            problems.append(f"signature: expected the columns that {CONFIG} describes, found others")
        if problems:
            raise BundleError(bundle.location, problems)
        forecaster.eval().requires_grad_(False).to(self._device.kind)
        forecaster.computes_in_bf16 = self._device.precision == "bf16"
        if self._device.kind == "cuda":
            set_precision(self._device.precision)
        return TftPredictor(
            forecaster, mapping, artifact_bytes=sum(map(len, bundle.files.values())), precision=self._device.precision
        )


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
