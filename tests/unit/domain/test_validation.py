from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.domain.validation import problems_of


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: int = 0
    unit: Annotated[str, Field(max_length=3)] = "s"


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")

    plain: Leaf = Leaf()
    maybe: Leaf | None = None
    noted: Annotated[Leaf | None, Field(description="x")] = None
    listed: list[Leaf] = []
    tupled: tuple[Leaf, ...] = ()
    mapped: dict[str, Leaf] = {}
    nested: dict[str, list[Leaf]] = {}
    filled: Annotated[tuple[Leaf, ...], Field(min_length=1)] = (Leaf(),)

    @model_validator(mode="after")
    def _is_light(self) -> "Tree":
        if self.plain.weight > 9:
            raise ValueError("plain is too heavy")
        return self


def problems(document: Any) -> tuple[str, ...]:
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(document)
    return problems_of(caught.value, Tree)


WRONG = {"wieght": 1}


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"plain": WRONG}, "plain"),
        ({"maybe": WRONG}, "maybe"),
        ({"noted": WRONG}, "noted"),
        ({"listed": [{}, WRONG]}, "listed.1"),
        ({"tupled": [WRONG]}, "tupled.0"),
        ({"mapped": {"a": WRONG}}, "mapped.a"),
        ({"nested": {"a": [WRONG]}}, "nested.a.0"),
    ],
    ids=str,
)
def test_unknown_key_is_named_with_path_and_nearest_wherever_the_model_stands(document: Any, path: str) -> None:
    assert problems(document) == (f"{path}.wieght: unknown key (did you mean 'weight'?); known: unit, weight",)


def test_unknown_key_like_no_other_lists_what_is_known() -> None:
    assert problems({"plain": {"zzz": 1}}) == ("plain.zzz: unknown key; known: unit, weight",)


def test_wrong_type_shows_expected_and_found() -> None:
    (problem,) = problems({"plain": {"weight": "heavy"}})
    assert problem.startswith("plain.weight: expected a valid integer")
    assert problem.endswith("found 'heavy' (str)")


def test_rule_of_a_value_reads_as_a_sentence() -> None:
    assert problems({"plain": {"unit": "metre"}}) == (
        "plain.unit: expected a string to have at most 3 characters, found 'metre' (str)",
    )


def test_rule_of_the_whole_document_has_no_path() -> None:
    assert problems({"plain": {"weight": 10}}) == ("plain is too heavy",)


def test_list_is_not_called_too_short_for_a_wrong_item_in_it() -> None:
    assert len(problems({"filled": [WRONG]})) == 1
    assert problems({"filled": []}) == (
        "filled: expected a tuple to have at least 1 item after validation, not 0, found [] (list)",
    )


def test_long_values_are_cut() -> None:
    (problem,) = problems({"plain": {"weight": "x" * 1000}})
    assert len(problem) < 250


def test_problems_come_in_the_order_of_the_document() -> None:
    found = problems({"plain": WRONG, "listed": [WRONG], "other": 1})
    assert [problem.partition(":")[0] for problem in found] == ["plain.wieght", "listed.0.wieght", "other"]
