import pytest

from serve_app.domain.reload import Operation, Outcome
from serve_app.ingress.reload_log import registry_facts


def operation(version: str | None = "2") -> Operation:
    return Operation(operation_id="op-1", family="iris", outcome=Outcome.RELOADED, to_version=version)


@pytest.mark.parametrize(("stage", "said"), [("Production", "Production"), (None, "stable")])
def test_facts_name_the_model_as_the_registry_does(stage: str | None, said: str) -> None:
    assert registry_facts(operation(), "models:/iris-model", stage) == {
        "model_uri": "models:/iris-model/2", "version": "2", "stage": said,
    }  # fmt: skip


def test_version_of_a_directory_is_named_by_its_path() -> None:
    assert registry_facts(operation("v1"), "/srv/models", None)["model_uri"] == "/srv/models/v1"


def test_change_to_no_version_has_no_address() -> None:
    assert registry_facts(operation(None), "models:/iris-model", None)["model_uri"] is None
