"""A document on this node's disk: the last answer of the control plane, read when a process starts without it."""

import tempfile
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError

Document = TypeVar("Document", bound=BaseModel)
log = structlog.get_logger(__name__)


class LastKnown:
    """One file, replaced as a whole. Losing it costs nothing but a start without the control plane."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, kind: type[Document]) -> Document | None:
        """Return the document, or None when there is none that can be read."""
        try:
            return kind.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("last known state is unreadable", path=str(self._path), reason=str(error))
            return None

    def write(self, document: BaseModel) -> None:
        """Replace the document; a disk that cannot take it is logged and no more."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("wb", dir=self._path.parent, prefix=".", delete=False) as file:
                file.write(document.model_dump_json().encode())
            Path(file.name).replace(self._path)
        except OSError as error:
            log.warning("last known state not saved", path=str(self._path), reason=str(error))
