from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep what the server logs of its requests out of the tests' output."""
    with structlog.testing.capture_logs():
        yield
