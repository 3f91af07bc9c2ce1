import pytest

from serve_app.adapters.loaders.environment_check import mismatches, running_environment, saved_environment
from serve_app.adapters.loaders.mlmodel_file import MlmodelFile

MLMODEL = b"""
flavors:
  python_function: {loader_module: mlflow.sklearn, python_version: 3.11}
  sklearn: {pickled_model: model.pkl, sklearn_version: 1.6.0}
"""


def test_what_the_flavour_states_comes_before_requirements() -> None:
    files = {
        "model/requirements.txt": b"mlflow==3.1\nScikit_Learn[x] == 1.5.2 # why\nnumpy>=2\ntorch===2.6.0+cpu\n",
        "model/python_env.yaml": b"build_dependencies:\n- pip==23\npython: 3.12.1\n",
        "model/MLmodel": MLMODEL,
    }
    recorded = saved_environment(files, MlmodelFile.read(files, "here"))
    assert recorded == {"mlflow": "3.1", "scikit-learn": "1.6.0", "torch": "2.6.0+cpu", "python": "3.11"}


@pytest.mark.parametrize(
    ("recorded", "running", "is_told"),
    [
        ({"python": "3.11.2"}, {"python": "3.11.9"}, False),
        ({"python": "3.11"}, {"python": "3.12.0"}, True),
        ({"scikit-learn": "1.6.0"}, {"scikit-learn": "1.6.1"}, False),
        ({"scikit-learn": "1.6.0"}, {"scikit-learn": "1.7.0"}, True),
        ({"scikit-learn": "1.6.0"}, {}, True),
        ({"numpy": "2.0.1"}, {"numpy": "2.4.0"}, False),
        ({"numpy": "1.26.4"}, {"numpy": "2.4.0"}, True),
        ({"torch": "2.6.0+cpu"}, {"torch": "2.6.1"}, False),
        ({"torch": "2.5.0"}, {"torch": "2.6.1"}, True),
    ],
)
def test_versions_agree_as_far_as_it_matters(recorded: dict[str, str], running: dict[str, str], is_told: bool) -> None:
    assert bool(mismatches(recorded, running, with_torch=True)) is is_told


def test_torch_is_passed_by_where_the_model_does_not_use_it() -> None:
    assert mismatches({"torch": "1.0"}, {"torch": "2.0"}, with_torch=False) == []
    assert running_environment().keys() >= {"python", "scikit-learn", "numpy"}
