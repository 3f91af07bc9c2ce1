"""`serve-app kuberay render`: the patch of a RayService that holds a Serve config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.cli.kuberay import pod_problems, serve_config_patch
from serve_app.domain.errors import ConfigError
from tests.kuberay.rendering import REPOSITORY

EDGE = REPOSITORY / "configs" / "edge.yaml"
Document = dict[str, Any]


def document(change: Callable[[Document, Document], Any]) -> Document:
    made: Document = yaml.safe_load(EDGE.read_text())
    change(made, made["applications"][0]["args"])
    return made


def test_comments_and_layout_do_not_reach_the_cluster(tmp_path: Path) -> None:
    """KubeRay deploys again whenever the text differs."""
    same = tmp_path / "edge.yaml"
    same.write_text("# another remark\n" + yaml.safe_dump(yaml.safe_load(EDGE.read_text()), sort_keys=False, indent=4))
    assert serve_config_patch(same) == serve_config_patch(EDGE)


def test_the_patch_names_the_service_and_holds_the_config() -> None:
    patch = yaml.safe_load(serve_config_patch(EDGE, name="mine"))
    assert (patch["kind"], patch["metadata"]) == ("RayService", {"name": "mine"})
    assert list(patch["spec"]) == ["serveConfigV2"]
    assert yaml.safe_load(patch["spec"]["serveConfigV2"]) == yaml.safe_load(EDGE.read_text())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d, a: d["http_options"].update(host="127.0.0.1"), "http_options.host: expected 0.0.0.0"),
        (lambda d, a: d["http_options"].update(host="localhost"), "http_options.host: expected 0.0.0.0"),
        (lambda d, a: d["http_options"].update(port=9000), "http_options.port: expected 8000"),
        (lambda d, a: d.update(proxy_location="HeadOnly"), "proxy_location: expected EveryNode"),
        (lambda d, a: a.update(state_dir=".serve-app"), "applications[0].args.state_dir: expected an absolute path"),
        (lambda d, a: a.pop("state_dir"), "applications[0].args.state_dir: expected an absolute path"),
        (lambda d, a: a["security"].pop("token_file"), "args.security.token_file: expected an absolute path"),
        (
            lambda d, a: a["families"]["forecaster"].update(source={"root": "models"}),
            "args.families.forecaster.source.root: expected an absolute path",
        ),
    ],
)
def test_a_config_that_pods_cannot_be_served_by_is_refused(change: Any, expected: str) -> None:
    (problem,) = pod_problems(document(change))
    assert expected in problem


def test_what_ray_puts_in_by_itself_may_be_left_out() -> None:
    assert pod_problems(document(lambda d, a: (d.pop("http_options"), d.pop("proxy_location")))) == []


def test_a_family_in_a_registry_has_no_directory() -> None:
    def change(_: Document, args: Document) -> None:
        args["families"]["forecaster"].update(source={"kind": "mlflow_registry", "model": "forecaster"})

    assert pod_problems(document(change)) == []


def test_all_problems_are_told_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(document(lambda d, a: (d["http_options"].update(port=1), a.pop("state_dir")))))
    with pytest.raises(ConfigError) as caught:
        serve_config_patch(file)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [str(file), str(file)]


def test_a_key_that_ray_would_ignore_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(document(lambda d, a: d["applications"][0].update(route_prefx="/"))))
    with pytest.raises(ConfigError, match=r"applications\[0\]\.route_prefx: unknown key \(did you mean 'route_prefix'"):
        serve_config_patch(file)


def test_the_command_writes_a_file_or_prints(tmp_path: Path) -> None:
    out = tmp_path / "patch.yaml"
    written = CliRunner().invoke(app, ["kuberay", "render", str(EDGE), "--out", str(out)])
    printed = CliRunner().invoke(app, ["kuberay", "render", str(EDGE)])
    assert (written.exit_code, printed.exit_code) == (0, 0)
    assert out.read_text() == printed.output == serve_config_patch(EDGE)


def test_the_command_refuses_a_config_of_one_machine() -> None:
    done = CliRunner().invoke(app, ["kuberay", "render", str(REPOSITORY / "configs" / "local.yaml")])
    assert done.exit_code == 1
    assert "http_options.host" in done.output
