"""`docs/mlflow.md`: its settings are settings, its table is that of the figures; integration tests run its commands."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import AppConfig, SecurityConfig
from serve_app.config_env import with_overrides
from serve_app.config_sources import RegistryConfig
from serve_app.domain.access import token_digest
from tests import mlflow_server
from tests.benchmarks import registry_report
from tests.benchmarks.registry_figures import RegistryRun
from tests.pages import DOCS, block, page

PAGE = "mlflow.md"
CONFIG: dict[str, Any] = {
    "allow_env_overrides": True,
    "state_dir": "state",
    "families": {"iris": {"models_type": "classification", "source": {"root": "models/iris"}}},
}


def test_the_family_is_one_that_the_configuration_takes() -> None:
    family = yaml.safe_load(block(PAGE, "yaml", "mlflow_registry"))
    source = AppConfig.parse({"families": family}).families["iris"].source
    assert isinstance(source, RegistryConfig)
    assert source.selector == ("alias", "champion")


@pytest.mark.parametrize("selector", re.findall(r"^\| `(\w+: .*?)` \|", page(PAGE), re.MULTILINE))
def test_each_selector_is_one_that_the_configuration_takes(selector: str) -> None:
    RegistryConfig.model_validate({"model": "iris", **yaml.safe_load(selector)})


@pytest.mark.parametrize("part", ["webhook_secret_file", "allow_pickle_loaders"])
def test_the_security_settings_are_such(part: str) -> None:
    SecurityConfig.model_validate(yaml.safe_load(block(PAGE, "yaml", part))["security"])


def test_every_variable_of_the_table_changes_a_configuration() -> None:
    section = page(PAGE).split("## Settings from the environment")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])]
    assert len(named) == 11
    values = {"ADMIN_API_TOKEN": "0123456789abcdef", "ADMIN_TOKEN_HEADER": "X-Other", "MODEL_SOURCE": "mlflow"}
    base = {"MODEL_SOURCE": "mlflow", "MLFLOW_MODEL_NAME": "iris"}
    for name in named:
        before = with_overrides(CONFIG, {} if name in base else base, working_dir=Path("/"))
        after = with_overrides(CONFIG, base | {name: values.get(name, "7")}, working_dir=Path("/"))
        assert after != before, name


def test_the_composed_environment_makes_the_default_family_follow_the_stage() -> None:
    service = yaml.safe_load(block(PAGE, "yaml", "services:"))["services"]["inference"]
    token = "0123456789abcdef"
    environ = {name: re.sub(r"\$\{\w+:\?.*\}", token, str(value)) for name, value in service["environment"].items()}
    config = AppConfig.parse(with_overrides(CONFIG, environ, working_dir=Path("/")))
    source = config.source("iris")
    assert isinstance(source, RegistryConfig)
    assert (source.tracking_uri, source.model) == ("http://mlflow:5000", "iris-random-forest")
    assert source.selector == ("stage", "Production")
    assert source.cache_dir in [volume.split(":")[1] for volume in service["volumes"]]
    assert config.families["iris"].reload.interval_s == 300
    assert config.security.admin_token_sha256 == token_digest(token).hex()


@pytest.mark.parametrize("name", mlflow_server.webhook_settings())
def test_the_page_names_every_setting_that_webhooks_to_this_machine_need(name: str) -> None:
    assert name in page(PAGE)


def test_the_table_is_that_of_the_figures() -> None:
    run = RegistryRun.model_validate_json((DOCS / registry_report.JSON_FILE.name).read_text())
    assert registry_report.put_into(page(PAGE), registry_report.table(run)) == page(PAGE)


def test_a_page_without_markers_is_left_alone() -> None:
    with pytest.raises(registry_report.NoMarkersError):
        registry_report.put_into("# A page\n", "a table")
