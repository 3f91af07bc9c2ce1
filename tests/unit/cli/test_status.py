from typing import Any

from serve_app.cli.printed import plain
from serve_app.cli.status import family_rows, health_line, replica_rows
from serve_app.ingress.health import health_body
from tests.reports import report
from tests.unit.ingress.serving import FAMILY, Server


def health_of(server: Server, **facts: Any) -> dict[str, Any]:
    """Return what /health says once a replica has reported these facts."""
    server.observe(**facts)
    return health_body(server.router, frozenset({FAMILY}))


async def test_families_show_what_answers_since_which_generation() -> None:
    server = Server()
    assert family_rows(health_of(server, last_error="v2: wrong digest")) == [
        (FAMILY, "v1", 1, "v2: wrong digest"),
        ("iris", "nothing yet", None, None),
    ]
    assert health_line(health_of(server)) == "health: ok, ready, generation 1"


async def test_replicas_show_what_they_hold_load_and_refuse() -> None:
    server = Server({"v1": lambda rows: rows, "v2": lambda rows: rows})
    health = health_of(server, wanted="v1", loading={"v3": "verifying"}, failed={"ab" * 32: "wrong digest"})
    assert replica_rows(health) == [
        (FAMILY, "r1", "cpu", "pinned to v1", "v1*\nv2", "v3: verifying", "abababababab: wrong digest"),
        ("iris", "none has reported", "", "", "", "", ""),
    ]


async def test_each_replica_has_a_row() -> None:
    server = Server()
    server.router.observe(FAMILY, "cpu", [report("v1"), report(replica_id="r2")])
    held = {row[1]: (row[3], row[4]) for row in replica_rows(health_body(server.router, frozenset({FAMILY})))}
    assert held == {"r1": ("current", "v1*"), "r2": ("current", ""), "none has reported": ("", "")}


async def test_many_refused_bundles_are_cut_to_the_newest() -> None:
    failed = {f"{n:064d}": f"reason {n}" for n in range(5)}
    shown = str(replica_rows(health_of(Server(), failed=failed))[0][-1]).splitlines()
    assert [line.split(": ")[-1] for line in shown] == ["reason 4", "reason 3", "reason 2", "and 2 earlier"]


def test_silent_server_and_one_of_an_earlier_kind_are_told_without_an_error() -> None:
    assert health_line(None) == "/health does not answer"
    earlier = {"families": {"iris": {"ready": True, "replicas": [{"replica": "a"}]}}}
    assert health_line(earlier) == "health: unknown, not ready, generation unknown"
    assert replica_rows(earlier) == [("iris", "a", None, "", "", "", "")]


def test_what_a_bundle_says_is_neither_markup_nor_an_order_to_the_terminal() -> None:
    text = plain("[red]v1[/red] \x1b[2J\x9b31m")
    assert text.plain == "[red]v1[/red] \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}31m"
    assert text.spans == []
