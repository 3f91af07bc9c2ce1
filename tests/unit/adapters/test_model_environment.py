import pytest

from serve_app.adapters.model_environment import recorded_environment


def recorded(**files: str) -> dict[str, str]:
    """Read a model with these files; `requirements` stands for requirements.txt, `python_env` for its YAML."""
    names = {"requirements.txt": "requirements", "python_env.yaml": "python_env", "MLmodel": "mlmodel"}
    return recorded_environment(lambda name: files.get(names[name], "").encode())


def test_pins_and_python_are_read() -> None:
    requirements = "mlflow==3.1.0\nScikit_Learn == 1.6.1\nnumpy>=1.26\nuvicorn[standard]==0.30.1\n# torch==1\n\n"
    python_env = "python: 3.11.9\nbuild_dependencies:\n- pip==24\n"
    assert recorded(requirements=requirements, python_env=python_env) == {
        "mlflow": "3.1.0",
        "python": "3.11.9",
        "scikit-learn": "1.6.1",
        "uvicorn": "0.30.1",
    }


def test_python_is_found_in_the_flavor_of_old_models() -> None:
    assert recorded(mlmodel="flavors:\n  python_function:\n    python_version: 3.8.12\n") == {"python": "3.8.12"}


@pytest.mark.parametrize("text", ["", "flavors: 3", "- a\n- b", "{{{", "flavors: {python_function: x}"])
def test_nothing_recorded_is_empty(text: str) -> None:
    assert recorded(mlmodel=text) == {}
