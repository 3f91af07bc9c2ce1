import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.domain.access import (
    BARE_NAME,
    FailureTable,
    Scope,
    TokenFileError,
    parse_tokens,
    scopes_of,
)

SECRET = "a-token-of-some-length"
OTHER = "another-token-of-length"


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.mark.parametrize(
    ("scope", "included"),
    [
        (Scope.READ, {Scope.READ}),
        (Scope.RELOAD, {Scope.READ, Scope.RELOAD}),
        (Scope.ROLLOUT, {Scope.READ, Scope.RELOAD, Scope.ROLLOUT}),
        (Scope.INGEST, {Scope.INGEST}),
    ],
)
def test_scope_includes_the_lesser_ones(scope: Scope, included: set[Scope]) -> None:
    assert scopes_of(scope) == included


@pytest.mark.parametrize("text", [SECRET, SECRET + "\n", f"# ours\n\n  {SECRET}  \r\n", "\ufeff" + SECRET])
def test_bare_token_has_all_scopes(text: str) -> None:
    token = parse_tokens(text.encode()).find(SECRET)
    assert token is not None
    assert (token.name, token.scopes) == (BARE_NAME, frozenset(Scope))


def test_bare_digest_is_a_token_too() -> None:
    tokens = parse_tokens(f"sha256:{digest(SECRET).upper()}".encode())
    assert tokens.find(SECRET) is not None
    assert tokens.find(f"sha256:{digest(SECRET)}") is None, "the digest is no secret and must not open anything"


def test_lines_give_names_and_scopes() -> None:
    tokens = parse_tokens(f"ann read {SECRET}\nci reload,read sha256:{digest(OTHER)}\n".encode())
    ann, ci = tokens.find(SECRET), tokens.find(OTHER)
    assert ann is not None
    assert ci is not None
    assert (ann.name, ann.scopes) == ("ann", frozenset({Scope.READ}))
    assert (ci.name, ci.scopes) == ("ci", frozenset({Scope.READ, Scope.RELOAD}))
    assert tokens.find("something-else-entirely") is None


def test_old_and_new_token_of_one_client_hold_together() -> None:
    tokens = parse_tokens(f"ci reload {SECRET}\nci reload {OTHER}".encode())
    assert [token.name for token in map(tokens.find, (SECRET, OTHER)) if token] == ["ci", "ci"]


def test_problems_of_all_lines_come_at_once_and_show_nothing_of_them() -> None:
    lines = [
        f"ann read {SECRET}",
        OTHER,
        f"{OTHER}! read {SECRET}",
        f"bob {OTHER} {SECRET}",
        "eve read short",
        "mal read sha256:zz",
        f"two read {SECRET}",
    ]
    with pytest.raises(TokenFileError) as caught:
        parse_tokens("\n".join(lines).encode())
    problems = caught.value.problems
    assert [problem.split(":")[0] for problem in problems[:-1]] == [f"line {n}" for n in (2, 3, 4, 5, 6)]
    assert problems[-1] == "expected each token once, found one in two lines"
    assert not any(part in str(caught.value) for part in (SECRET, OTHER, "short", "zz"))


@pytest.mark.parametrize("raw", [b"", b"\n # only a remark\n", b"\xff\xfe", b"short", b"with\xc3\xa9-an-accent-inside"])
def test_file_without_a_usable_token_is_refused(raw: bytes) -> None:
    with pytest.raises(TokenFileError):
        parse_tokens(raw)


def test_token_shows_neither_secret_nor_digest() -> None:
    tokens = parse_tokens(f"ann read {SECRET}".encode())
    shown = repr(tokens)
    assert "ann" in shown
    assert SECRET not in shown
    assert digest(SECRET) not in shown
    assert str(tokens.tokens[0].digest) not in shown


@given(st.text())
def test_any_text_can_be_presented(secret: str) -> None:
    found = parse_tokens(SECRET.encode()).find(secret)
    assert (found is not None) == (secret == SECRET)


@given(st.binary(max_size=200))
def test_any_bytes_are_tokens_or_refused(raw: bytes) -> None:
    with suppress(TokenFileError):
        assert parse_tokens(raw).tokens


def test_each_failure_costs_twice_the_one_before_up_to_a_bound() -> None:
    table = FailureTable(first_delay_s=0.25, max_delay_s=4.0)
    assert [table.note("a", now_s=0.0) for _ in range(7)] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert table.note("b", now_s=0.0) == 0.25, "what one address did costs no other"
    for _ in range(2000):
        assert table.note("a", now_s=0.0) == 4.0


def test_quiet_time_is_forgiven() -> None:
    table = FailureTable(first_delay_s=1.0, max_delay_s=4.0, forget_after_s=60.0)
    assert [table.note("a", now_s=t) for t in (0.0, 60.0, 120.1)] == [1.0, 2.0, 1.0]


def test_table_forgets_the_address_that_was_quiet_for_longest() -> None:
    table = FailureTable(first_delay_s=1.0, max_delay_s=4.0, max_addresses=2)
    for address in ("a", "b", "a", "c"):
        table.note(address, now_s=0.0)
    assert len(table) == 2
    assert table.note("a", now_s=0.0) == 4.0
    assert table.note("b", now_s=0.0) == 1.0


def test_no_number_of_addresses_grows_the_table() -> None:
    table = FailureTable(first_delay_s=1.0, max_delay_s=4.0)
    for i in range(5000):
        table.note(f"198.51.100.{i}", now_s=0.0)
    assert len(table) == 1024
