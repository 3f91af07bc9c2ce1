"""The network of the rehearsal, and the overlays that run in it."""

from collections.abc import Iterator

import pytest

from tests.rehearsal.containers import has_user
from tests.rehearsal.harness import Rehearsal, rehearsing
from tests.rehearsal.network import NoNamespacesError, PodNetwork, check_tools, pod_network


def pytest_report_header() -> str:
    """Say how Pods are isolated here."""
    try:
        check_tools()
    except NoNamespacesError as error:
        return f"rehearsal: not possible here: {error}"
    users = "the users of the manifests" if has_user(1000) else "one user, mapped to root: no other users here"
    return f"rehearsal: Pods in namespaces of network, mounts and processes, as {users}"


@pytest.fixture(scope="package")
def network() -> Iterator[PodNetwork]:
    """The tests of this package run in a network of their own; skipped where none can be made."""
    try:
        with pod_network() as made:
            yield made
    except NoNamespacesError as error:
        pytest.skip(f"Pods cannot be isolated: {error}")


@pytest.fixture(scope="module")
def edge(network: PodNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """The overlay `edge`, running: one Pod with head and sidecar."""
    with rehearsing("edge", network=network, folder=tmp_path_factory.mktemp("edge")) as running:
        running.await_running()
        yield running
