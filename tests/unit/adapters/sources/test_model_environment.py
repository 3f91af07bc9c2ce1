from pathlib import Path

import pytest

from serve_app.adapters.sources.model_environment import recorded_environment


def test_pins_and_python_are_read(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "mlflow==3.1.0\nScikit_Learn == 1.6.1\nnumpy>=1.26\nuvicorn[standard]==0.30.1\n# torch==1\n\n"
    )
    (tmp_path / "python_env.yaml").write_text("python: 3.11.9\nbuild_dependencies:\n- pip==24\n")
    assert recorded_environment(tmp_path) == {
        "mlflow": "3.1.0",
        "python": "3.11.9",
        "scikit-learn": "1.6.1",
        "uvicorn": "0.30.1",
    }


def test_python_is_found_in_the_flavor_of_old_models(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors:\n  python_function:\n    python_version: 3.8.12\n")
    assert recorded_environment(tmp_path) == {"python": "3.8.12"}


@pytest.mark.parametrize("text", ["", "flavors: 3", "- a\n- b", "{{{", "flavors: {python_function: x}"])
def test_nothing_recorded_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "MLmodel").write_text(text)
    assert recorded_environment(tmp_path) is None
