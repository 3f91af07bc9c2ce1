import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.adapters.sources.registry_client import NotRegisteredError, RegistryClient, shown_uri
from serve_app.adapters.sources.registry_settings import Selector
from serve_app.domain.errors import SourceError
from tests.mlflow_server import MlflowServer, free_port
from tests.stub_registry import Answer, StubRegistry, stub_registry

CHAMPION = Selector("alias", "champion")
NEWEST = Selector("newest")
FILES = {"MLmodel": b"flavors: {}\n", "data/model.pkl": b"forest"}


def client_of(uri: str, *, timeout_s: float = 5.0, artifacts_timeout_s: float = 10.0) -> RegistryClient:
    return RegistryClient(uri, timeout_s=timeout_s, artifacts_timeout_s=artifacts_timeout_s)


@pytest.fixture(scope="module")
def client(mlflow_server: MlflowServer) -> RegistryClient:
    return client_of(mlflow_server.uri)


@pytest.fixture
def stub() -> Iterator[StubRegistry]:
    with stub_registry() as made:
        yield made


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((500, b"oops"), "HTTP status 500"),
        ((503, b"busy"), "HTTP status 503"),
        ((401, b"<html>log in</html>"), "HTTP status 401"),
        ((403, b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}'), "PERMISSION_DENIED: not yours"),
        ((200, b"<html>a proxy</html>"), "one that is not JSON"),
        ((200, b'{"model_version": {"name": "iris"}}'), "an answer of none"),
        ((404, b"no such page"), "HTTP status 404"),
        (None, "the connection broken"),
    ],
)
def test_answer_of_another_kind_is_told_in_one_sentence_at_once(
    stub: StubRegistry, answer: Answer | None, found: str
) -> None:
    stub.answer = answer
    began_s = time.monotonic()
    with pytest.raises(SourceError, match=f"registry at {stub.uri}, found:? {found}$") as caught:
        client_of(stub.uri).resolve("iris", CHAMPION)
    assert not isinstance(caught.value, NotRegisteredError)
    assert time.monotonic() - began_s < 5  # whatever Retry-After says: others decide when to ask again
    assert stub.n_requests <= 2


def test_registry_that_says_nothing_is_given_up(stub: StubRegistry) -> None:
    stub.holds = True
    with pytest.raises(SourceError, match=f"{stub.uri} within 1 s, found none"):
        client_of(stub.uri, timeout_s=1).resolve("iris", CHAMPION)
    assert stub.n_requests == 1


def test_registry_that_is_down_refuses_the_connection() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SourceError, match=f"expected the registry at {uri}, found the connection refused"):
        client_of(uri).versions("iris")


def test_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(SourceError, match="found no such host"):
        client_of("http://registry.invalid:5000").versions("iris")


def test_credentials_are_in_no_message() -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}/sub?token=secret"
    with pytest.raises(SourceError) as caught:
        client_of(uri).versions("iris")
    assert "secret" not in str(caught.value)
    assert shown_uri(uri).endswith("/sub")


def test_address_that_is_none_is_told() -> None:
    with pytest.raises(SourceError, match="unsupported URI 'htp://x'"):
        client_of("htp://x").resolve("iris", NEWEST)


def test_server_tells_its_version(client: RegistryClient) -> None:
    import mlflow

    assert client.server_version() == mlflow.__version__


def test_missing_model_names_the_nearest(mlflow_server: MlflowServer, client: RegistryClient) -> None:
    mlflow_server.register_files("client-forest", FILES)
    for selector in (CHAMPION, NEWEST, Selector("stage", "Production"), Selector("version", "1")):
        with pytest.raises(NotRegisteredError, match=r"found none of that name .did you mean 'client-forest'"):
            client.resolve("client-forrest", selector)


def test_missing_alias_stage_and_version_name_those_that_are_there(
    mlflow_server: MlflowServer, client: RegistryClient
) -> None:
    mlflow_server.register_files("client-missing", FILES, alias="challenger", stage="Staging")
    with pytest.raises(NotRegisteredError, match=r"expected the alias 'champion' .* found challenger"):
        client.resolve("client-missing", CHAMPION)
    with pytest.raises(NotRegisteredError, match=r"expected a version in the stage 'Production' .* in Staging"):
        client.resolve("client-missing", Selector("stage", "Production"))
    for version in ("2", "01", "one", "-1"):
        with pytest.raises(NotRegisteredError, match=f"expected version '{version}' .* found 1$") as caught:
            client.resolve("client-missing", Selector("version", version))
        assert caught.value.known == ("1",)


@pytest.mark.parametrize("selector", [CHAMPION, NEWEST, Selector("stage", "Production")])
def test_model_without_versions_is_none_yet(
    mlflow_server: MlflowServer, client: RegistryClient, selector: Selector
) -> None:
    name = f"client-empty-{selector.kind}"
    mlflow_server.client.create_registered_model(name)
    assert client.resolve(name, selector) is None
    assert client.versions(name) == []


def test_every_selector_finds_its_version(mlflow_server: MlflowServer, client: RegistryClient) -> None:
    mlflow_server.register_files("client-chosen", FILES, alias="champion")
    mlflow_server.register_files("client-chosen", FILES, stage="Production")
    mlflow_server.register_files("client-chosen", FILES)
    chosen = {
        str(selector): client.resolve("client-chosen", selector)
        for selector in (CHAMPION, Selector("stage", "production"), NEWEST, Selector("version", "2"))
    }
    assert {word: found and found.version for word, found in chosen.items()} == {
        "champion": "1",
        "production": "2",
        "newest": "3",
        "2": "2",
    }
    assert chosen["champion"] is not None
    assert (chosen["champion"].aliases, chosen["champion"].uri) == (("champion",), "models:/client-chosen/1")
    assert chosen["production"] == chosen["2"]
    assert chosen["2"] is not None
    assert chosen["2"].stage == "Production"
    assert [found.version for found in client.versions("client-chosen")] == ["3", "2", "1"]


@pytest.mark.parametrize("name", ["client spaced", "client größe", "client's", 'client"s', "client%2F", "client#?&="])
def test_odd_names_are_found(mlflow_server: MlflowServer, client: RegistryClient, tmp_path: Path, name: str) -> None:
    mlflow_server.register_files(name, FILES, alias="champion")
    for selector in (CHAMPION, NEWEST):
        found = client.resolve(name, selector)
        assert found is not None
        assert (found.model, found.version) == (name, "1")
    client.download(client.version(name, "1"), tmp_path, max_bytes=1000)
    assert (tmp_path / "data" / "model.pkl").read_bytes() == b"forest"


def test_files_above_the_limit_are_not_downloaded(
    mlflow_server: MlflowServer, client: RegistryClient, tmp_path: Path
) -> None:
    mlflow_server.register_files("client-large", FILES)
    found = client.version("client-large", "1")
    with pytest.raises(SourceError, match="expected at most 10 bytes in models:/client-large/1, found 18"):
        client.download(found, tmp_path, max_bytes=10)
    assert list(tmp_path.iterdir()) == []


def test_mark_of_an_earlier_download_is_no_part_of_a_model(
    mlflow_server: MlflowServer, client: RegistryClient, tmp_path: Path
) -> None:
    mlflow_server.register_files("client-again", FILES | {"registered_model_meta": b"model_name: other\n"})
    client.download(client.version("client-again", "1"), tmp_path, max_bytes=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MLmodel", "data"]


def test_version_without_files_is_told(mlflow_server: MlflowServer, client: RegistryClient, tmp_path: Path) -> None:
    mlflow_server.register_files("client-hollow", {})
    with pytest.raises(SourceError, match=r"expected the files of models:/client-hollow/1 .* found none"):
        client.download(client.version("client-hollow", "1"), tmp_path, max_bytes=1000)


@pytest.fixture
def elsewhere(mlflow_server: MlflowServer, stub: StubRegistry) -> str:
    """Register a model whose one file lies on the stub; return its name."""
    name = f"client-elsewhere-{stub.uri.rpartition(':')[2]}"
    client = mlflow_server.client
    experiment = client.create_experiment(name, artifact_location=f"{stub.uri}/api/2.0/mlflow-artifacts/artifacts")
    run = client.create_run(experiment)
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    stub.answers["?path="] = 200, b'{"files": [{"path": "MLmodel", "is_dir": false, "file_size": 10}]}'
    return name


def test_download_that_takes_too_long_is_given_up(
    mlflow_server: MlflowServer, stub: StubRegistry, elsewhere: str, tmp_path: Path
) -> None:
    client = client_of(mlflow_server.uri, timeout_s=30, artifacts_timeout_s=0.5)
    found = client.version(elsewhere, "1")
    stub.holds = True
    with pytest.raises(SourceError, match=rf"{found.uri} .* within 0\.5 s, found them still coming"):
        client.download(found, tmp_path, max_bytes=1000)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((200, b"012345678"), "expected 10 bytes for MLmodel of .*, found 9"),
        ((404, b"gone"), "found HTTP status 404"),
        ((503, b"busy"), "found HTTP status 503"),
        (None, "found the connection broken"),
    ],
)
def test_file_that_does_not_come_whole_is_told(
    mlflow_server: MlflowServer, stub: StubRegistry, elsewhere: str, tmp_path: Path, answer: Answer | None, found: str
) -> None:
    stub.answers["/MLmodel"] = answer
    client = client_of(mlflow_server.uri)
    with pytest.raises(SourceError, match=f"{found}$"):
        client.download(client.version(elsewhere, "1"), tmp_path, max_bytes=1000)


@pytest.mark.parametrize("path", ["../MLmodel", "/etc/passwd", "a//b", "a\\b"])
def test_file_that_would_leave_the_copy_is_refused(
    mlflow_server: MlflowServer, stub: StubRegistry, elsewhere: str, tmp_path: Path, path: str
) -> None:
    listed = {"files": [{"path": path, "is_dir": False, "file_size": 10}]}
    stub.answers["?path="] = 200, json.dumps(listed).encode()
    client = client_of(mlflow_server.uri)
    with pytest.raises(SourceError, match=r"expected .* found"):
        client.download(client.version(elsewhere, "1"), tmp_path / "copy", max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_run_tells_metrics_and_params_without_nan(mlflow_server: MlflowServer, client: RegistryClient) -> None:
    version = mlflow_server.register_files("client-run", FILES)
    found = client.version("client-run", version)
    mlflow_server.client.log_metric(found.run_id, "accuracy", 0.9)
    mlflow_server.client.log_metric(found.run_id, "broken", float("nan"))
    mlflow_server.client.log_param(found.run_id, "trees", 50)
    facts = client.run_facts(found)
    assert (facts.metrics, facts.params) == ({"accuracy": 0.9}, {"trees": "50"})


def test_run_that_is_gone_tells_nothing(mlflow_server: MlflowServer, client: RegistryClient) -> None:
    version = mlflow_server.register_files("client-no-run", FILES)
    found = replace(client.version("client-no-run", version), run_id="0" * 32)
    assert client.run_facts(found).metrics == {}
