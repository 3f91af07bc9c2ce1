"""`docs/protocols.md`: its routes are those of the server."""

import re

from tests.pages import DOCS, page
from tests.unit.ingress.serving import Server

PAGE = "protocols.md"


async def test_the_tables_have_every_route_and_no_other() -> None:
    rows = [line.split("|")[1] for line in page(PAGE).splitlines() if line.startswith("| `")]
    told = {(method, path) for row in rows for method, path in re.findall(r"`(GET|POST) (/\S+)`", row)}
    paths = Server().api.rest.openapi()["paths"]
    known = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == {(method, path) for method, path in known if re.match(r"/v[12](/|$)", path)}


def test_the_links_lead_somewhere() -> None:
    for name in re.findall(r"\]\(([\w.-]+\.md)", page(PAGE)):
        assert (DOCS / name).is_file(), name
