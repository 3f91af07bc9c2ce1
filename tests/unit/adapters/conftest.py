"""One process that explains for all tests that need one: its start takes seconds."""

from collections.abc import Iterator

import pytest

from serve_app.adapters.explain_process import ExplainProcess


@pytest.fixture(scope="session")
def explaining() -> Iterator[ExplainProcess]:
    pytest.importorskip("shap", reason="shap is not installed: pip install -e '.[explain]'", exc_type=ImportError)
    process = ExplainProcess(timeout_s=120.0)
    yield process
    process.close()
