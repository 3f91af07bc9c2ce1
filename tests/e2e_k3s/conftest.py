"""The cluster of the suite: one installation for the session; without a cluster, one reason for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e_k3s.gate import REQUIRED, MissingError, open_gate
from tests.e2e_k3s.installation import Installation, images, installed

LOGS = Path("e2e-k3s-logs")


@pytest.fixture(scope="session")
def k3s() -> Iterator[Installation]:
    """The overlay `edge`, installed in a namespace of its own."""
    missing, kubectl = None, None
    try:
        kubectl = open_gate(os.environ, images())
    except MissingError as error:
        missing = str(error)
    if kubectl is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, but {missing}", pytrace=False)
        pytest.skip(str(missing))
    with installed(kubectl, LOGS) as installation:
        yield installation
