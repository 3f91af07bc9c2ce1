"""The stores that the contracts of state and events run over: a fake, SQLite, and a PostgreSQL that is started."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.adapters.state_store import SqlStateStore
from serve_app.usecases.ports import StateStore
from tests.contracts.postgres_server import NoPostgresError, PostgresServer, postgres_server
from tests.fakes.state_store import FakeStateStore


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    try:
        with postgres_server() as server:
            yield server
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return _database(request, tmp_path)


def _database(request: pytest.FixtureRequest, folder: Path) -> str:
    """Return the URL of an empty database of the kind that the fixture is asked for."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/state/state.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=["fake", "sqlite", "postgres"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], StateStore]]:
    """Return another store over the same data, as a restarted process would have."""
    if request.param == "fake":
        fake = FakeStateStore()
        yield lambda: fake
        return
    where = _database(request, tmp_path)
    opened: list[SqlStateStore] = []

    def open_one() -> StateStore:
        opened.append(SqlStateStore(where))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Callable[[], StateStore]) -> StateStore:
    return reopen()
