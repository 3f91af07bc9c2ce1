"""A replica in this process that takes batches over a real link."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.adapters.link.link_server import LinkServer
from serve_app.domain.errors import UnknownVersionError
from serve_app.domain.status import LinkAddress, ReplicaStatus
from tests.fakes.predict_client import Model
from tests.reports import report

HOST = "127.0.0.1"


class LinkedReplica:
    """Answers by `models`, over the link and over the handle. Set `error` to make `status` raise."""

    def __init__(self, models: Mapping[str, Model], *, replica_id: str = "r1") -> None:
        self.models = dict(models)
        self.replica_id = replica_id
        self.error: Exception | None = None
        self.server = LinkServer(self._outputs, max_frame_bytes=1 << 20)
        self.address: LinkAddress | None = None
        self.n_over_link = 0

    async def listen(self) -> "LinkedReplica":
        """Start the link."""
        self.address = LinkAddress(host=HOST, port=await self.server.start(HOST), secret=self.server.secret)
        return self

    async def status(self) -> ReplicaStatus:
        """Report the versions in `models`."""
        if self.error is not None:
            raise self.error
        return report(*self.models, replica_id=self.replica_id, link=self.address)

    async def predict(self, version: str, rows: NDArray[np.float64]) -> NDArray[Any]:
        """Predict over the handle."""
        outputs = self._model(version)(rows)
        return outputs if isinstance(outputs, np.ndarray) else await outputs

    def _outputs(self, version: str, rows: NDArray[np.float64]) -> Any:
        self.n_over_link += 1
        return self._model(version)(rows)

    def _model(self, version: str) -> Model:
        if version not in self.models:
            raise UnknownVersionError("forecaster", version, list(self.models))
        return self.models[version]
