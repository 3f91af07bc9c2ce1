import pytest

from serve_app.domain.errors import InvalidInputError, NotOfferedError
from serve_app.domain.naming import MAX_MODEL_CHARACTERS, Named, NamingRule, parse_named

RULE = NamingRule("iris", other_models=True, allowed_models=("team-*", "fraud detection"))


@pytest.mark.parametrize(
    ("model", "version", "qualified"),
    [
        (None, "3", "3"),
        ("iris", "3", "3"),
        ("team-a", "3", "team-a:3"),
        ("fraud detection", "12", "fraud%20detection:12"),
        ("team-a", None, None),
    ],
)
def test_name_of_a_version_is_qualified_for_other_models(
    model: str | None, version: str | None, qualified: str | None
) -> None:
    assert RULE.named("flowers", model, version).qualified == qualified


def test_own_model_by_name_is_the_same_as_without() -> None:
    assert RULE.named("flowers", "iris", None) == RULE.named("flowers", None, None) == Named(None, None)


@pytest.mark.parametrize("version", ["", "../3", "current", "3:4", "x" * 129])
def test_text_that_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(InvalidInputError, match=r"'version': expected a version"):
        RULE.named("flowers", None, version)


@pytest.mark.parametrize("model", ["", "a" * (MAX_MODEL_CHARACTERS + 1), "team-\n"])
def test_text_that_is_no_model_is_refused(model: str) -> None:
    with pytest.raises(InvalidInputError, match="'model': expected the name of a registered model"):
        RULE.named("flowers", model, None)


@pytest.mark.parametrize("rule", [RULE, NamingRule("iris")])
def test_model_that_is_not_allowed_is_not_offered(rule: NamingRule) -> None:
    with pytest.raises(NotOfferedError, match="family 'flowers' does not serve the registered model 'other' by name"):
        rule.named("flowers", "other", "1")


def test_without_patterns_every_model_is_offered() -> None:
    assert NamingRule("iris", other_models=True).named("flowers", "any/thing", "1").qualified == "any%2Fthing:1"


def test_family_without_a_registry_has_versions_but_no_models() -> None:
    assert NamingRule().named("flowers", None, "v1").qualified == "v1"
    with pytest.raises(NotOfferedError, match="its versions come from no registry"):
        NamingRule().named("flowers", "iris", None)


@pytest.mark.parametrize(
    ("named", "shown"),
    [(Named("iris", "3"), "iris version 3"), (Named("iris", None), "iris"), (Named(None, "3"), "version 3")],
)
def test_what_is_named_reads_well(named: Named, shown: str) -> None:
    assert str(named) == shown


def test_operators_write_a_model_with_or_without_a_version() -> None:
    assert parse_named("iris:3") == ("iris", "3")
    assert parse_named("iris") == ("iris", None)


@pytest.mark.parametrize("text", ["", ":3", "iris:", "iris:a b", "iris:1:2"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected <model> or <model>:<version>"):
        parse_named(text)
