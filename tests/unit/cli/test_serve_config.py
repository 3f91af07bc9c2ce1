from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.cli.serve_config import default_model_root, localise, port_of, read_config
from serve_app.domain.errors import ConfigError

LOCAL = Path(__file__).parents[3] / "configs" / "local.yaml"


def write(path: Path, document: Any) -> Path:
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_the_local_config_gets_the_port_and_state_of_the_instance(tmp_path: Path) -> None:
    localised = localise(read_config(LOCAL), port=8123, state_dir=tmp_path)
    assert localised["http_options"] == {"host": "127.0.0.1", "port": 8123}
    assert localised["applications"][0]["args"]["state_dir"] == str(tmp_path)


def test_localising_changes_nothing_else(tmp_path: Path) -> None:
    document = read_config(LOCAL)
    localised = localise(document, port=port_of(document), state_dir=tmp_path)
    localised["applications"][0]["args"]["state_dir"] = document["applications"][0]["args"]["state_dir"]
    assert localised == document


def test_an_absolute_state_directory_stays(tmp_path: Path) -> None:
    document = {"applications": [{"name": "a", "import_path": "else:app", "args": {"state_dir": "/srv/state"}}]}
    assert localise(document, port=1, state_dir=tmp_path)["applications"][0]["args"] == {"state_dir": "/srv/state"}


def test_a_missing_state_directory_is_given_to_our_application_only(tmp_path: Path) -> None:
    document = {"applications": [{"import_path": "serve_app.app:build_app"}, {"import_path": "else:app"}]}
    ours, other = localise(document, port=1, state_dir=tmp_path)["applications"]
    assert ours["args"] == {"state_dir": str(tmp_path)}
    assert other["args"] == {}


def test_the_default_family_and_its_models_are_found_under_the_state_directory(tmp_path: Path) -> None:
    assert default_model_root(read_config(LOCAL), tmp_path) == ("forecaster", tmp_path / "models" / "forecaster")


def test_a_wrong_key_is_refused_with_its_place(tmp_path: Path) -> None:
    document = yaml.safe_load(LOCAL.read_text())
    document["applications"][0]["args"]["default_famly"] = "forecaster"
    with pytest.raises(ConfigError, match=r"applications\[0\]\.args: .*default_famly"):
        read_config(write(tmp_path, document))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("just text", "expected a Serve config"),
        ({"applications": {}}, "expected a Serve config"),
        ({"applications": ["x"]}, r"applications\[0\]: expected a mapping"),
    ],
)
def test_a_file_that_is_no_serve_config_is_refused(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(write(tmp_path, document))


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"config\.yaml: "):
        read_config(file)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "none.yaml")
