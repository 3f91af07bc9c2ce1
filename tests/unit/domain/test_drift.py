"""What counts as drift, and what does not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.drift import (
    ABSENT,
    Difference,
    GatewayFacts,
    ReplicaFacts,
    config_differences,
    document_differences,
    missing_replicas,
    state_differences,
    version_differences,
)

Edit = Callable[[dict[str, Any]], Any]
DIGEST, OTHER = "a" * 64, "b" * 64
PIN = {("iris", "cpu"): "v2"}
FOLLOWS = {("iris", "cpu"): "current"}


def config() -> dict[str, Any]:
    return {
        "proxy_location": "EveryNode",
        "http_options": {"port": 8000},
        "applications": [
            {
                "name": "serve-app",
                "args": {"families": {"iris": {"pools": [{"name": "cpu"}]}}, "state_dir": "s"},
                "deployments": [
                    {"name": "iris-cpu", "num_replicas": 2, "user_config": {"manifest_version": "current"}},
                    {"name": "gateway", "autoscaling_config": {"max_replicas": 4}, "num_replicas": 1},
                ],
            }
        ],
    }


def first(document: dict[str, Any]) -> dict[str, Any]:
    return document["applications"][0]  # type: ignore[no-any-return]


NO_DRIFT: dict[str, Edit] = {
    "nothing changed": lambda document: None,
    "order of deployments": lambda document: first(document)["deployments"].reverse(),
    "a number written in another way": lambda document: document["http_options"].update(port=8000.0),
    "replicas that the autoscaler chose": lambda document: first(document)["deployments"][1].update(num_replicas=3),
    "what Serve tells nothing of": lambda document: document.update(logging_config={"log_level": "DEBUG"}),
}
DRIFT: dict[str, tuple[Edit, str]] = {
    "a wish": (
        lambda document: first(document)["deployments"][0].update(user_config={"manifest_version": "v1"}),
        'applications.serve-app.deployments.iris-cpu.user_config.manifest_version: expected "current", found "v1"',
    ),
    "a number of replicas": (
        lambda document: first(document)["deployments"][0].update(num_replicas=3),
        "applications.serve-app.deployments.iris-cpu.num_replicas: expected 2, found 3",
    ),
    "an application that nobody asked for": (
        lambda document: document["applications"].append({"name": "other"}),
        'applications.other: expected nothing, found {"deployments": {}, "name": "other"}',
    ),
    "an application that is missing": (
        lambda document: document["applications"].clear(),
        "applications.serve-app: expected {",
    ),
    "a setting that was taken away": (
        lambda document: first(document)["args"].pop("state_dir"),
        'applications.serve-app.args.state_dir: expected "s", found nothing',
    ),
    "a pool more": (
        lambda document: first(document)["args"]["families"]["iris"]["pools"].append({"name": "gpu"}),
        'applications.serve-app.args.families.iris.pools[1]: expected nothing, found {"name": "gpu"}',
    ),
    "the port": (
        lambda document: document["http_options"].update(port=8001),
        "http_options.port: expected 8000, found 8001",
    ),
    "true for one": (
        lambda document: document["http_options"].update(port=True),
        "http_options.port: expected 8000, found true",
    ),
    "a deployment that Serve no longer scales": (
        lambda document: first(document)["deployments"][1].pop("autoscaling_config"),
        'applications.serve-app.deployments.gateway.autoscaling_config: expected {"max_replicas": 4}, found nothing',
    ),
}


@pytest.mark.parametrize("edit", NO_DRIFT.values(), ids=NO_DRIFT)
def test_is_no_drift(edit: Edit) -> None:
    running = config()
    edit(running)
    assert config_differences(config(), running, untold={"logging_config"}) == []


@pytest.mark.parametrize(("edit", "line"), DRIFT.values(), ids=DRIFT)
def test_is_drift(edit: Edit, line: str) -> None:
    running = config()
    edit(running)
    (difference,) = config_differences(config(), running)
    assert str(difference).startswith(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_equal_documents_never_differ(document: Any) -> None:
    assert document_differences(document, copy.deepcopy(document)) == []


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(document, dict):
        return [one for key, value in document.items() for one in leaves(value, (*path, key))]
    if isinstance(document, list):
        return [one for i, value in enumerate(document) for one in leaves(value, (*path, i))]
    return [path]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), JSON, min_size=1), st.data())
def test_one_changed_leaf_is_found_where_it_is(document: dict[str, Any], data: st.DataObject) -> None:
    places = leaves(document)
    if not places:
        return
    *above, last = data.draw(st.sampled_from(places))
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in above:
        inner = inner[key]
    before, inner[last] = inner[last], "changed!"
    (difference,) = document_differences(document, changed)
    assert (difference.expected, difference.found) == (before, "changed!")
    steps = [str(key) for key in (*above, last)]
    assert difference.path.startswith(steps[0])
    assert all(step in difference.path for step in steps if step.isalnum())


def details(**of: Any) -> dict[str, Any]:
    deployment = {
        "status": "HEALTHY",
        "target_num_replicas": 2,
        "replicas": [{"state": "RUNNING", "replica_id": "r1"}, {"state": "RUNNING", "replica_id": "r2"}],
    }
    application = {"status": "RUNNING", "message": "", "deployments": {"iris-cpu": deployment | of}}
    return {"applications": {"serve-app": application}}


AT = "applications.serve-app.deployments.iris-cpu"


@pytest.mark.parametrize(
    ("of", "lines"),
    [
        ({}, []),
        ({"target_num_replicas": 3, "replicas": [{"state": "RUNNING"}] * 3},
         [f"{AT}.target_num_replicas: expected 2, found 3"]),
        ({"replicas": [{"state": "RUNNING"}, {"state": "STARTING"}]},
         [f'{AT}.replicas: expected "2 running", found "1 running"']),
        ({"status": "UNHEALTHY", "message": "no\n  memory"},
         [f'{AT}.status: expected "HEALTHY", found "UNHEALTHY: no memory"']),
    ],
)  # fmt: skip
def test_serve_does_what_was_asked_for(of: dict[str, Any], lines: list[str]) -> None:
    assert [str(one) for one in state_differences(config(), details(**of))] == lines


def test_an_application_that_failed_is_told_once_with_its_reason() -> None:
    running = details()
    running["applications"]["serve-app"] |= {"status": "DEPLOY_FAILED", "message": "no such family", "deployments": {}}
    (difference,) = state_differences(config(), running)
    assert str(difference) == 'applications.serve-app.status: expected "RUNNING", found "DEPLOY_FAILED: no such family"'


def replica(held: dict[str, str], wanted: str = "current", name: str = "r1") -> ReplicaFacts:
    return ReplicaFacts(name, "iris", "cpu", wanted, held)


def gateway(version: str = "v1", digest: str = DIGEST, generation: int = 4, name: str = "g1") -> GatewayFacts:
    return GatewayFacts(name, generation, {"iris": (version, digest)})


@pytest.mark.parametrize(
    ("pins", "replicas", "gateways", "lines"),
    [
        (FOLLOWS, [replica({"v1": DIGEST})], [gateway()], []),
        (FOLLOWS, [replica({"v1": DIGEST, "v0": OTHER})], [gateway(), gateway(name="g2")], []),
        (PIN, [replica({"v2": DIGEST}, "v2")], [gateway("v2")], []),
        (FOLLOWS, [replica({})], [GatewayFacts("g1", 0)], []),
        (FOLLOWS, [replica({"v0": DIGEST})], [gateway()],
         ['families.iris.pools.cpu.holds: expected "v1", found "v0" (replica r1)']),
        (FOLLOWS, [replica({})], [gateway()],
         ['families.iris.pools.cpu.holds: expected "v1", found nothing (replica r1)']),
        (FOLLOWS, [replica({"v1": OTHER})], [gateway()],
         ['families.iris.pools.cpu.holds: expected "v1 (aaaaaaaaaaaa)", found "v1 (bbbbbbbbbbbb)" (replica r1)']),
        (PIN, [replica({"v1": DIGEST}, "v2")], [gateway()],
         ['families.iris.answers: expected "v2", found "v1"',
          'families.iris.pools.cpu.holds: expected "v2", found "v1" (replica r1)']),
        (PIN, [replica({"v2": DIGEST}), replica({"v2": DIGEST}, "v2", "r2")], [gateway("v2")],
         ['families.iris.pools.cpu.user_config.manifest_version: expected "v2", found "current" (replica r1)']),
        (FOLLOWS, [replica({"v1": DIGEST})], [gateway(), gateway("v0", generation=3, name="g2")],
         ["routes.generation: expected 4, found 3 (replica g2)"]),
        (FOLLOWS, [replica({"v1": DIGEST})], [gateway(), gateway("v0", name="g2")],
         ['families.iris.answers: expected "v1 (aaaaaaaaaaaa)", found "v0 (aaaaaaaaaaaa)" (replica g2)']),
    ],
)  # fmt: skip
def test_replicas_hold_what_is_pinned_or_routed_to(
    pins: dict[tuple[str, str], str], replicas: list[ReplicaFacts], gateways: list[GatewayFacts], lines: list[str]
) -> None:
    assert [str(one) for one in version_differences(pins, replicas, gateways)] == lines


def test_a_running_replica_that_reports_nothing_is_named() -> None:
    running = [("iris-cpu", "r1"), ("iris-cpu", "r2"), ("gateway", "g1")]
    (difference,) = missing_replicas(running, [replica({})], {("iris", "cpu"): "iris-cpu"})
    assert str(difference) == 'families.iris.pools.cpu: expected "a report", found nothing (replica r2)'


def test_secrets_are_told_nowhere() -> None:
    lines = document_differences(
        {"reconciler": {"store_url": "a:word@b"}, "env": {"runtime_env": {"env_vars": {"KEY": "word"}}}},
        {"reconciler": {"store_url": "a:other-word@b"}, "admin": {"token": "word"}, "env": {}},
    )
    assert len(lines) == 3
    assert "word" not in str([str(one) for one in lines]) + str([one.document() for one in lines])


def test_a_document_for_machines_has_no_key_for_a_side_that_has_nothing() -> None:
    assert Difference("a", None, ABSENT, "r1").document() == {"path": "a", "expected": None, "replica": "r1"}
