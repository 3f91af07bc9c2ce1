import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from serve_app.config import AppConfig, ReplicaUserConfig
from serve_app.config_rollout import ReconcilerUserConfig
from serve_app.config_sources import DirectoryConfig, RegistryConfig
from serve_app.domain.errors import ConfigError
from serve_app.domain.naming import Named, NamingRule

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def document(**changes: Any) -> dict[str, Any]:
    family = {"models_type": "regression", "source": {"root": "models/forecaster"}}
    return {"families": {"forecaster": family}} | changes


def problems(wrong: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        AppConfig.parse(wrong)
    return caught.value.problems


def put(path: str, value: Any) -> dict[str, Any]:
    """Return a good document with one value put at a path; a number in it is a place in a list."""
    made = document(default_family="forecaster")
    made["families"]["forecaster"]["pools"] = [{"name": "cpu"}]
    here: Any = made
    *way, last = path.split(".")
    for part in way:
        here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
    here[last] = value
    return made


def test_smallest_document_gets_the_defaults() -> None:
    config = AppConfig.parse(document())
    family = config.families["forecaster"]
    assert config.default_family_name == "forecaster"
    assert [pool.name for pool in family.pools] == ["cpu"]
    assert (family.loader, family.required) == ("sklearn_targets", True)
    assert config.security.allow_pickle_loaders == ()
    assert config.limits.max_body_bytes == 4 << 20
    assert config.source("forecaster") == DirectoryConfig(root=".serve-app/models/forecaster")


def test_absolute_root_of_a_source_is_kept() -> None:
    config = AppConfig.parse(put("families.forecaster.source.root", "/srv/models"))
    assert config.source("forecaster") == DirectoryConfig(root="/srv/models")


def test_first_family_is_the_default_family() -> None:
    family = document()["families"]["forecaster"]
    assert AppConfig.parse({"families": {"b": family, "a": family}}).default_family_name == "b"


def models_in(model: BaseModel) -> list[BaseModel]:
    found = [model]
    for value in vars(model).values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        for part in parts:
            found += models_in(part) if isinstance(part, BaseModel) else []
    return found


def test_every_part_is_frozen_and_refuses_unknown_keys() -> None:
    parts = models_in(AppConfig.parse(document()))
    assert len(parts) > 8
    for part in parts:
        assert part.model_config["extra"] == "forbid"
        name = next(iter(type(part).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


def test_every_field_with_a_number_says_its_unit_or_meaning() -> None:
    for part in models_in(AppConfig.parse(document())):
        for name, field in type(part).model_fields.items():
            if isinstance(getattr(part, name), int | float):
                assert field.description, f"{type(part).__name__}.{name}"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("famlies", "famlies: unknown key (did you mean 'families'?)"),
        ("limits.max_body_byte", "limits.max_body_byte: unknown key (did you mean 'max_body_bytes'?)"),
        ("security.allow_pickle_loader", "(did you mean 'allow_pickle_loaders'?)"),
        ("gateway.num_replica", "gateway.num_replica: unknown key (did you mean 'num_replicas'?)"),
        ("logging.levle", "logging.levle: unknown key (did you mean 'level'?)"),
        ("families.forecaster.model_type", "families.forecaster.model_type: unknown key (did you mean 'models_type'?)"),
        ("families.forecaster.source.rot", "families.forecaster.source.rot: unknown key (did you mean 'root'?)"),
        ("families.forecaster.pools.0.num_cpu", "pools.0.num_cpu: unknown key (did you mean 'num_cpus'?)"),
        ("zzz", "zzz: unknown key; known: "),
    ],
)
def test_unknown_key_is_named_with_its_path_and_the_nearest_right_one(path: str, said: str) -> None:
    (problem,) = problems(put(path, 1))
    assert said in problem


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("limits.max_body_bytes", 0, "limits.max_body_bytes: expected greater than 0, found 0 (int)"),
        ("limits.request_timeout_s", math.nan, "limits.request_timeout_s: expected greater than 0, found nan (float)"),
        ("limits.max_batch_rows", "many", "limits.max_batch_rows: expected a valid integer, "),
        ("logging.level", "loud", "logging.level: expected 'debug', 'info', 'warning' or 'error', found 'loud' (str)"),
        ("gateway.num_replicas", 0, "gateway.num_replicas: expected greater than or equal to 1, found 0 (int)"),
        (
            "families.forecaster.source.kind",
            "ftp",
            "families.forecaster.source.kind: expected 'local_directory', 'mlflow_registry', found",
        ),
        ("families.forecaster.pools", [], "families.forecaster.pools: expected a tuple to have at least 1 item"),
        ("families.forecaster.pools.0.name", "GPU 1", "pools.0.name: expected a string to match pattern"),
        ("families.forecaster.models_type", None, "models_type: expected a valid string, found None (NoneType)"),
        ("families", {}, "families: expected a dictionary to have at least 1 item"),
        ("default_family", "forcaster", "default_family: 'forcaster' is no family (did you mean 'forecaster'?)"),
        ("security.allow_pickle_loaders", "all", "security.allow_pickle_loaders: expected a valid tuple, found 'all'"),
    ],
)
def test_wrong_value_is_named_with_expected_and_found(path: str, value: Any, said: str) -> None:
    (problem,) = problems(put(path, value))
    assert said in problem


def test_missing_values_are_named_with_their_path() -> None:
    assert problems({"families": {"forecaster": {}}}) == (
        "families.forecaster.models_type: missing",
        "families.forecaster.source: missing",
    )


def test_pools_of_one_name_are_refused() -> None:
    wrong = put("families.forecaster.pools", [{"name": "cpu"}, {"name": "cpu"}])
    assert problems(wrong) == ("families.forecaster: pool names must differ, found cpu, cpu",)


def test_name_of_a_family_must_fit_a_deployment() -> None:
    (problem,) = problems({"families": {"No Such": document()["families"]["forecaster"]}})
    assert problem.startswith("families.No Such.[key]: expected a string to match pattern")


@pytest.mark.parametrize("wrong", [None, [], "text", 7])
def test_document_that_is_no_object_is_refused(wrong: Any) -> None:
    (problem,) = problems(wrong)
    assert problem.startswith("document: expected a valid dictionary")


def test_all_problems_are_told_at_once() -> None:
    wrong = put("limits.max_body_bytes", 0) | {"a": 1, "b": 2}
    assert len(problems(wrong)) == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_in_the_repository_parses(path: Path) -> None:
    applications = yaml.safe_load(path.read_text())["applications"]
    assert applications
    for application in applications:
        config = AppConfig.parse(application["args"])
        pools = {f"{name}-{pool.name}" for name, family in config.families.items() for pool in family.pools}
        for deployment in application.get("deployments", []):
            if deployment["name"] in pools:
                ReplicaUserConfig.parse(deployment.get("user_config"))
            else:
                assert deployment["name"] in {"gateway", "reconciler"}, "no such deployment"


def test_repository_has_configurations() -> None:
    assert {"local.yaml", "bench.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize(("given", "wanted"), [(None, "current"), ({}, "current"), ({"manifest_version": "v2"}, "v2")])
def test_wish_of_a_replica_is_read(given: Any, wanted: str) -> None:
    assert ReplicaUserConfig.parse(given).manifest_version == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"manifest_versoin": "v2"}, "manifest_versoin: unknown key (did you mean 'manifest_version'?)"),
        ({"manifest_version": 2}, "manifest_version: expected a valid string, found 2 (int)"),
        ([], "document: expected a valid dictionary"),
        ("", "document: expected a valid dictionary"),
        (False, "document: expected a valid dictionary"),
    ],
    ids=str,
)
def test_wish_that_cannot_be_read_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ReplicaUserConfig.parse(given)
    assert said in str(caught.value)


def registry(**source: Any) -> dict[str, Any]:
    """A document whose only family follows the registered model iris."""
    known = {"kind": "mlflow_registry", "model": "iris"}
    return {"families": {"flowers": {"models_type": "classification", "source": known | source}}}


def registry_of(document: dict[str, Any]) -> RegistryConfig:
    source = AppConfig.parse(document).families["flowers"].source
    assert isinstance(source, RegistryConfig)
    return source


def test_only_versions_of_its_own_model_may_be_named_by_default() -> None:
    assert registry_of(registry()).naming == NamingRule("iris", other_models=False, allowed_models=())


def test_what_is_preloaded_is_read() -> None:
    source = registry_of(
        registry(other_models=True, allowed_models=["team-*"], preload=["iris:3", "team-a", "team-b:2"])
    )
    assert source.preloaded == (Named(None, "3"), Named("team-a", None), Named("team-b", "2"))
    assert source.naming.offers("team-c")
    assert not source.naming.offers("other")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"allowed_models": ["a"]}, "allowed_models: expected other_models to be true as well"),
        ({"preload": ["iris"]}, "preload: expected a version, iris:<version>; the model itself is loaded anyway"),
        ({"preload": ["ant:1"]}, "preload: expected 'ant' to be a model that other_models and allowed_models allow"),
        ({"preload": ["iris:"]}, "expected <model> or <model>:<version>, found 'iris:'"),
        ({"demand_wait_s": 0}, "demand_wait_s"),
    ],
)
def test_wrong_names_are_told_in_one_sentence(source: dict[str, Any], said: str) -> None:
    (problem,) = problems(registry(**source))
    assert said in problem


CANARY = {"strategy": "canary", "steps": [{"weight": 5}]}


def test_plan_of_a_rollout_is_read_with_its_defaults() -> None:
    plan = AppConfig.parse(put("families.forecaster.rollout", CANARY)).families["forecaster"].rollout
    assert plan is not None
    assert (plan.strategy.value, plan.steps[0].buckets, plan.analysis is not None) == ("canary", 500, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": []}, "steps: expected at least one with the strategy canary"),
        ({"stepz": []}, "rollout.stepz: unknown key (did you mean 'steps'?)"),
        ({"pool": "gpu"}, "rollout.pool: expected one of cpu, found 'gpu'"),
        ({"stable_pool": "gpu"}, "rollout.stable_pool: expected one of cpu, found 'gpu'"),
    ],
)
def test_plan_that_does_not_fit_its_family_is_refused(changes: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(put("families.forecaster.rollout", CANARY | changes)))


def test_plan_needs_room_for_two_versions() -> None:
    wrong = put("families.forecaster.rollout", CANARY)
    wrong["families"]["forecaster"]["residency"] = {"policy": "resource_preserving"}
    assert "both versions answer at the same time" in problems(wrong)[0]


@pytest.mark.parametrize("name", ["ab", "shadow"])
def test_configuration_with_a_plan_is_local_yaml_otherwise(name: str) -> None:
    local, planned = (yaml.safe_load((REPOSITORY / "configs" / f"{stem}.yaml").read_text()) for stem in ("local", name))
    family = planned["applications"][0]["args"]["families"]["forecaster"]
    plan = family.pop("rollout")
    for compared in ("shadow", "record") if name == "shadow" else ():
        family.pop(compared)
    assert (planned, plan["strategy"]) == (local, name)


def test_canary_yaml_is_local_yaml_with_a_plan_that_a_deploy_changes() -> None:
    local, planned = (yaml.safe_load((REPOSITORY / "configs" / f"{n}.yaml").read_text()) for n in ("local", "canary"))
    deployments = planned["applications"][0]["deployments"]
    (said,) = [deployments.pop(i) for i, one in enumerate(deployments) if one["name"] == "reconciler"]
    assert planned == local
    families = AppConfig.parse(local["applications"][0]["args"]).families
    facts = {name: family.rolled_out for name, family in families.items()}
    plan = ReconcilerUserConfig.parse(said["user_config"], facts).rollouts["forecaster"].plan
    assert plan is not None
    assert (plan.strategy.value, plan.is_watched) == ("canary", True)


WINDOWS = {"metrics": [{"name": "cpu"}]}


def retrained(windows: Any, **retrain: Any) -> dict[str, Any]:
    made = document()
    made["families"]["forecaster"] |= {"retrain": {"after_records": 10} | retrain}
    if windows is not None:
        made["families"]["forecaster"]["windows"] = windows
    return made


def test_directories_of_windows_lie_under_the_state_directory() -> None:
    config = AppConfig.parse(retrained(WINDOWS | {"archive": {}}) | {"state_dir": "/srv/state"})
    windows = config.windows("forecaster")
    assert windows is not None
    assert windows.archive is not None
    assert windows.archive.directory == "/srv/state/archive/forecaster"
    assert windows.store.model_dump()["directory"] == "/srv/state/windows/forecaster"
    elsewhere = config.families["forecaster"].windows
    assert elsewhere is not None
    assert elsewhere.under("/srv", "other").model_dump()["archive"]["directory"] == "/srv/archive/other"


def test_a_family_without_records_to_train_on_cannot_be_retrained() -> None:
    assert "expected windows, whose records are counted" in problems(retrained(None))[0]
    assert "expected windows.archive and a source in a directory, or a command" in problems(retrained(WINDOWS))[0]
    assert AppConfig.parse(retrained(WINDOWS, command=["train"])).families["forecaster"].retrain is not None
