"""Which servers a model knows: `server_mapping.json`, an object of name -> number from 1; 0 stands for all others."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serve_app.usecases.window_rows import server_key

UNKNOWN = 0


@dataclass(frozen=True, slots=True)
class ServerMapping:
    """The servers in the order of their numbers, the first is 1; and their keys, sorted, to look many up at once."""

    servers: tuple[str, ...]
    _keys: NDArray[np.int64]
    _numbers: NDArray[np.int64]

    @classmethod
    def of(cls, servers: Sequence[str]) -> Self:
        """Number the servers in the order given.

        Raises:
            ValueError: A name comes twice, or two names have the same key.
        """
        keys = np.array([server_key(server) for server in servers], dtype=np.int64)
        if len(set(keys.tolist())) < len(keys):
            counts = Counter(keys.tolist())
            doubles = [server for server, key in zip(servers, keys.tolist(), strict=True) if counts[key] > 1]
            raise ValueError(f"expected servers whose keys differ, found the same for {', '.join(doubles)}")
        order = np.argsort(keys)
        return cls(tuple(servers), keys[order], order.astype(np.int64) + 1)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read the file.

        Raises:
            ValueError: It is no object of names with the numbers from 1 on, each once.
        """
        document = json.loads(raw)
        if not isinstance(document, dict) or not document:
            raise ValueError("expected an object of servers and their numbers, found none")
        if any(type(number) is not int for number in document.values()):
            raise ValueError("expected whole numbers, found something else")
        servers: list[str] = sorted(document, key=document.__getitem__)
        if [document[server] for server in servers] != list(range(1, len(servers) + 1)):
            raise ValueError(f"expected the numbers 1 to {len(servers)}, each once, found others")
        return cls.of(servers)

    def to_bytes(self) -> bytes:
        """Return the file's text."""
        mapping: Mapping[str, int] = {server: number for number, server in enumerate(self.servers, start=1)}
        return (json.dumps(mapping, indent=1, ensure_ascii=False) + "\n").encode()

    def numbers_of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of many servers by their keys, int64 (n,); 0 for those that are not known."""
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._numbers[places], UNKNOWN)

    def numbers_of(self, servers: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of many servers by their names, int64 (n,); 0 for those that are not known."""
        return self.numbers_of_keys(np.array([server_key(server) for server in servers], dtype=np.int64))
