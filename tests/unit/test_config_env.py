import copy
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import ADMIN_TOKEN_NAME, RELOAD_TOKEN_NAME, AppConfig
from serve_app.config_env import with_overrides
from serve_app.config_sources import DirectoryConfig, RegistryConfig
from serve_app.config_windows import JournalConfig, RedisConfig
from serve_app.domain.access import Scope
from serve_app.domain.errors import ConfigError
from serve_app.domain.following import ReloadMode

HERE = Path("/srv/here")
TOKEN = "a-reload-token-0123456789"
ALL = {
    "MODELS_BASE_DIR": "/models/current", "MODELS_TYPE": "ranking", "MODELS_MANIFEST": "bundle.json",
    "RELOAD_MODE": "endpoint", "RELOAD_INTERVAL_SECONDS": "2.5", "MODEL_CACHE_SIZE": "3", "RELOAD_TOKEN": TOKEN,
}  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    families = {
        name: {"models_type": "regression", "source": {"root": f"models/{name}"}} for name in ("iris", "forecaster")
    }
    return {"allow_env_overrides": True, "default_family": "forecaster", "families": families} | changes


def overridden(environ: dict[str, str], **changes: Any) -> AppConfig:
    return AppConfig.parse(with_overrides(document(**changes), environ, working_dir=HERE))


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        overridden(environ)
    return caught.value.problems


def test_environment_changes_nothing_unless_it_is_allowed() -> None:
    for closed in (document(allow_env_overrides=False), {"families": document()["families"]}):
        assert with_overrides(closed, ALL, working_dir=HERE) == closed


def test_every_variable_reaches_what_it_speaks_of() -> None:
    config = overridden(ALL)
    family, other = config.families["forecaster"], config.families["iris"]
    assert config.source("forecaster") == DirectoryConfig(root="/models/current", manifest_name="bundle.json")
    assert (family.models_type, other.models_type) == ("ranking", "regression")
    assert other.source == DirectoryConfig(root="models/iris")
    for each in (family, other):
        assert (each.reload.mode, each.reload.interval_s) == (ReloadMode.ENDPOINT, 2.5)
        assert each.residency.max_versions == 3


REGISTRY = {"kind": "mlflow_registry", "model": "flowers", "alias": "champion"}


def test_registry_variables_reach_the_family_that_has_one() -> None:
    made = document()
    made["families"]["iris"]["source"] = dict(REGISTRY)
    environ = {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_MODEL_NAME": "iris-model", "MLFLOW_MODEL_STAGE": "Staging",
        "MODEL_CACHE_DIR": "/var/cache/ml-model", "MODEL_UPDATE_INTERVAL": "60",
    }  # fmt: skip
    config = AppConfig.parse(with_overrides(made, environ, working_dir=HERE))
    assert config.source("iris") == RegistryConfig(
        tracking_uri="http://mlflow:5000", model="iris-model", stage="Staging", cache_dir="/var/cache/ml-model"
    )
    assert config.families["iris"].reload.interval_s == 60
    assert config.families["forecaster"] == AppConfig.parse(document()).families["forecaster"]
    pinned = with_overrides(made, environ | {"MLFLOW_MODEL_VERSION": "3"}, working_dir=HERE)
    source = AppConfig.parse(pinned).families["iris"].source
    assert isinstance(source, RegistryConfig)
    assert source.selector == ("version", "3")
    refreshed = with_overrides(made, environ | {"MODEL_AUTO_REFRESH_SECONDS": "300"}, working_dir=HERE)
    assert AppConfig.parse(refreshed).families["iris"].reload.interval_s == 300


def test_model_source_mlflow_gives_the_default_family_a_registry() -> None:
    environ = {"MODEL_SOURCE": "mlflow", "MLFLOW_MODEL_NAME": "iris-random-forest", "MLFLOW_MODEL_STAGE": "Production"}
    family = overridden(environ).families["forecaster"]
    assert family.source == RegistryConfig(model="iris-random-forest", stage="Production")
    assert family.loader == "mlflow"
    assert overridden({"MODEL_SOURCE": "local"}) == overridden({})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("mlflow", "expected MLFLOW_MODEL_NAME beside 'mlflow', found it not set"),
        ("ftp", "expected local or mlflow, found 'ftp'"),
    ],
)
def test_wrong_model_source_is_told(value: str, expected: str) -> None:
    assert problems({"MODEL_SOURCE": value}) == (f"MODEL_SOURCE: {expected}",)


def test_model_source_local_does_not_fit_a_registry() -> None:
    made = document()
    made["families"]["forecaster"]["source"] = dict(REGISTRY)
    with pytest.raises(ConfigError, match="MODEL_SOURCE: expected a family with a directory for 'local'"):
        with_overrides(made, {"MODEL_SOURCE": "local"}, working_dir=HERE)


def test_admin_token_of_the_environment_has_every_scope_and_its_own_header() -> None:
    config = overridden({"ADMIN_API_TOKEN": TOKEN, "ADMIN_TOKEN_HEADER": "X-Custom-Auth"})
    (token,) = config.fixed_tokens.tokens
    assert (token.name, token.scopes) == (ADMIN_TOKEN_NAME, frozenset(Scope))
    assert config.security.token_header == "X-Custom-Auth"
    assert TOKEN not in repr(config)


def test_a_cluster_is_told_apart_and_led_to_its_store() -> None:
    url = "postgresql://serve-app:hidden-word@db/serve-app"
    config = overridden({"STORE_URL": f"{url}\n", "RAY_CLUSTER_NAME": "serve-app-x7k2p"})
    assert (config.store_url, config.reconciler.cluster) == (url, "serve-app-x7k2p")
    assert "hidden-word" not in repr(config)


def test_windows_in_redis_are_led_to_it() -> None:
    windows = {"metrics": [{"name": "load"}], "store": {"kind": "redis", "url": "redis://nowhere"}}
    kept = {"models_type": "tft", "source": {"root": "m"}, "windows": windows}
    journal = {**kept, "windows": {"metrics": [{"name": "load"}]}}
    config = overridden(
        {"WINDOWS_REDIS_URL": "redis://:hidden-word@redis:6379/1"}, families={"forecaster": kept, "b": journal}
    )
    stores = [family.windows.store for family in config.families.values() if family.windows is not None]
    assert stores == [RedisConfig(kind="redis", url="redis://:hidden-word@redis:6379/1"), JournalConfig()]
    assert "hidden-word" not in repr(config)


def test_first_family_is_meant_where_none_is_named_as_default() -> None:
    made = document()
    del made["default_family"]
    changed = with_overrides(made, {"MODELS_TYPE": "ranking"}, working_dir=HERE)
    assert {name: family["models_type"] for name, family in changed["families"].items()} == {
        "iris": "ranking", "forecaster": "regression",
    }  # fmt: skip


@pytest.mark.parametrize(("said", "root"), [(".", "/srv/here"), ("models", "/srv/here/models"), ("/m/../n", "/n")])
def test_relative_base_directory_counts_from_the_working_directory(said: str, root: str) -> None:
    assert overridden({"MODELS_BASE_DIR": said}).source("forecaster") == DirectoryConfig(root=root)


def test_what_the_environment_leaves_out_stays_and_the_document_is_not_touched() -> None:
    given = document()
    before = copy.deepcopy(given)
    changed = with_overrides(given, {"MODEL_CACHE_SIZE": "2", "HOME": "/root"}, working_dir=HERE)
    assert given == before
    for family in changed["families"].values():
        assert family.pop("residency") == {"max_versions": 2}
    assert changed == before


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("empty", ["", " \n"])
def test_empty_variable_counts_as_not_set(name: str, empty: str) -> None:
    assert with_overrides(document(), {name: empty}, working_dir=HERE) == document()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RELOAD_MODE", "polling", "expected none, poll, endpoint, found 'polling'"),
        ("RELOAD_INTERVAL_SECONDS", "0", "expected a number of seconds above 0, found '0'"),
        ("RELOAD_INTERVAL_SECONDS", "-1", "expected a number of seconds above 0, found '-1'"),
        ("RELOAD_INTERVAL_SECONDS", "inf", "expected a number of seconds above 0, found 'inf'"),
        ("RELOAD_INTERVAL_SECONDS", "30s", "expected a number of seconds above 0, found '30s'"),
        ("MODEL_CACHE_SIZE", "0", "expected a whole number from 1 on, found '0'"),
        ("MODEL_CACHE_SIZE", "2.5", "expected a whole number from 1 on, found '2.5'"),
        ("MODEL_CACHE_SIZE", "²", "expected a whole number from 1 on, found '²'"),
        ("MODELS_MANIFEST", "../manifest.json", "expected the name of a file, found '../manifest.json'"),
    ],
)
def test_wrong_value_is_one_sentence_that_names_the_variable(name: str, value: str, expected: str) -> None:
    assert problems({name: value}) == (f"{name}: {expected}",)


def test_all_wrong_values_are_told_at_once() -> None:
    assert [problem.split(":")[0] for problem in problems({"RELOAD_MODE": "x", "MODEL_CACHE_SIZE": "x"})] == [
        "RELOAD_MODE", "MODEL_CACHE_SIZE",
    ]  # fmt: skip


def test_problems_of_the_document_itself_are_told() -> None:
    with pytest.raises(ConfigError, match="famlies: unknown key"):
        with_overrides(document(famlies={}), ALL, working_dir=HERE)


def test_reload_token_may_reload_and_no_more() -> None:
    (token,) = overridden({"RELOAD_TOKEN": f"{TOKEN}\n"}).fixed_tokens.tokens
    assert token.name == RELOAD_TOKEN_NAME
    assert [scope for scope in Scope if token.allows(scope)] == [Scope.READ, Scope.RELOAD]
    assert overridden({"RELOAD_TOKEN": TOKEN}).fixed_tokens.find(TOKEN) == token
    assert overridden({}).fixed_tokens.tokens == ()


def test_reload_token_lies_nowhere_but_as_its_digest() -> None:
    changed = with_overrides(document(), {"RELOAD_TOKEN": TOKEN}, working_dir=HERE)
    config = AppConfig.parse(changed)
    assert TOKEN not in f"{changed}{config!r}{config.model_dump_json()}"
    assert config.security.reload_token_sha256 is not None
    assert config.security.reload_token_sha256 not in repr(config)


@pytest.mark.parametrize("secret", ["too-short", "two words of many letters", "\xfc" * 20])
def test_reload_token_that_can_be_none_is_refused_without_being_told(secret: str) -> None:
    (problem,) = problems({"RELOAD_TOKEN": secret})
    assert problem.startswith("RELOAD_TOKEN: expected a token of 16 to 512 printable ASCII characters")
    assert secret not in problem
