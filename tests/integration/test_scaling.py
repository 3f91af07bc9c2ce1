"""More and fewer model replicas while versions change; and whether memory comes back after many changes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bad_bundles import write_iris
from tests.integration import iris
from tests.integration.conftest import Server

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

N_REPLICAS = 4
N_RELOADS = 20
MAX_GROWTH = 1.05


def test_scaling_out_and_in_during_reloads_fails_no_request_and_answers_nothing_stale(server: Server) -> None:
    with iris.traffic(server, connections=8) as traffic, ThreadPoolExecutor(1) as background:
        for n_replicas in (N_REPLICAS, 1):
            deployed = background.submit(server.deploy, {"name": "iris-cpu", "num_replicas": n_replicas})
            n_reloads = 0
            while not deployed.done() or n_reloads == 0:
                n_reloads += 1
                version = f"scaled-{n_replicas}-{n_reloads}"
                write_iris(server.models / "iris", version)
                told = iris.reload(server, version)
                assert told["success"] is True, told
            deployed.result()
            iris.await_settled(server, n_replicas)
    assert traffic.failed() == []
    assert iris.never_goes_back(traffic.answers)
    assert iris.one_version_each(traffic.answers)


def test_memory_stays_flat_over_many_reloads(server: Server) -> None:
    titles = (iris.MODEL_REPLICA, iris.GATEWAY, iris.RECONCILER)
    halfway: dict[str, int] = {}
    with iris.traffic(server, rate=50):
        for i in range(1, N_RELOADS + 1):
            write_iris(server.models / "iris", f"flat-{i}")
            assert iris.reload(server, f"flat-{i}")["success"] is True
            if i == N_RELOADS // 2:
                halfway = {title: rss_bytes(server, title) for title in titles}
        ended = {title: rss_bytes(server, title) for title in titles}
    growth = {title: ended[title] / halfway[title] for title in titles}
    assert max(growth.values()) <= MAX_GROWTH, (halfway, ended)


def rss_bytes(server: Server, title: str) -> int:
    (process,) = iris.processes_of(server, title)
    return int(process.memory_info().rss)
