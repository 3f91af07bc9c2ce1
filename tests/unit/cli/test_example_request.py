import json
from pathlib import Path

import pytest

from serve_app.cli.example_request import write_example_request
from serve_app.cli.state_dir import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir.at(tmp_path)
    state.prepare()
    return state


def publish(root: Path, golden: str) -> Path:
    (root / "v1").mkdir(parents=True)
    (root / "v1" / "golden.json").write_text(golden)
    (root / "current").symlink_to("v1")
    return root


def test_the_first_golden_row_becomes_the_example(state: StateDir, tmp_path: Path) -> None:
    root = publish(tmp_path / "models", json.dumps({"inputs": [[1.5, 2.0], [3.0, 4.0]], "outputs": [[1], [2]]}))
    assert write_example_request(state, root)
    assert json.loads(state.example_request_file.read_text()) == {"instances": [[1.5, 2.0]]}


@pytest.mark.parametrize("golden", ["no json", "[]", "{}"])
def test_unusable_golden_samples_give_no_example(state: StateDir, tmp_path: Path, golden: str) -> None:
    assert not write_example_request(state, publish(tmp_path / "models", golden))
    assert not state.example_request_file.exists()


def test_no_bundle_gives_no_example(state: StateDir, tmp_path: Path) -> None:
    assert not write_example_request(state, tmp_path / "models")
