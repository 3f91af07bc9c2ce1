import json
import re
import time
from pathlib import Path

import pytest
import structlog

from serve_app.config import AppConfig
from serve_app.domain.errors import ConfigError
from tests.unit.ingress.administered import BEARER, READ, RELOAD, ROLLOUT, Administered
from tests.unit.ingress.serving import Server

WRONG = "wrong-token-0123456789"
RELOADING = ["/reload", "/admin/reload", "/models/reload", "/admin/reload-model", "/admin/rollback"]
READING = ["/admin/models", "/admin/model-info", "/admin/versions", "/admin/audit", "/admin/operations/op-1"]
ROUTES = [*(("POST", path) for path in RELOADING), *(("GET", path) for path in READING)]
FAMILIES = {"forecaster": {"models_type": "regression", "source": {"root": "models"}}}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {RELOAD}"},
        {"authorization": f"bearer {RELOAD}"},
        {"X-Admin-Token": RELOAD},
        {"X-API-Key": RELOAD},
        {"x-reload-token": RELOAD},
        {"X-API-Key": WRONG, "X-Admin-Token": RELOAD},
    ],
)
@pytest.mark.parametrize("path", RELOADING)
async def test_every_header_opens_every_route(path: str, headers: dict[str, str]) -> None:
    served = Administered("v1", "v2")
    assert (await served.post(path, params={"family": "forecaster"}, headers=headers)).status_code in (200, 404)
    assert served.plane.asked[0]["actor"] == "ci"


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("headers", [{}, {"X-Admin-Token": WRONG}, {"Authorization": f"Basic {RELOAD}"}])
async def test_without_a_known_token_nothing_happens(method: str, path: str, headers: dict[str, str]) -> None:
    served = Administered("v1", "v2")
    answer = await served.call(method, path, headers=headers)
    if path == "/admin/reload":
        assert (answer.status_code, answer.json()) == (403, {"detail": "Forbidden"})
    else:
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["detail"] == "expected an admin token, found none that is known"
    assert served.plane.asked == []
    assert served.refusals.reasons == ["unknown" if "X-Admin-Token" in headers else "missing"]


@pytest.mark.parametrize("path", RELOADING)
async def test_token_that_may_only_read_changes_nothing(path: str) -> None:
    served = Administered("v1", "v2")
    answer = await served.post(path, headers={"X-API-Key": READ})
    assert answer.status_code == 403
    assert answer.json()["detail"] == (
        "Forbidden"
        if path == "/admin/reload"
        else "expected a token with the scope 'reload', found 'ann', which does not have it"
    )
    assert (served.plane.asked, served.refusals.reasons) == ([], ["scope"])


@pytest.mark.parametrize("token", [READ, RELOAD, ROLLOUT])
@pytest.mark.parametrize("path", READING)
async def test_every_token_may_read(path: str, token: str) -> None:
    served = Administered()
    expected = 404 if "operations" in path else 200
    assert (await served.get(path, headers={"X-API-Key": token})).status_code == expected


async def test_configured_header_takes_the_place_of_the_default_one() -> None:
    served = Administered("v1", "v2", token_header="X-Custom-Auth")
    assert (await served.post("/admin/reload", headers={"X-Admin-Token": RELOAD})).status_code == 403
    assert (await served.post("/admin/reload", headers={"X-Custom-Auth": RELOAD})).status_code == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_open_admin_needs_no_token(method: str, path: str) -> None:
    served = Administered("v1", "v2", open_admin=True)
    answer = await served.call(method, path, headers={}, params={"family": "forecaster"})
    assert answer.status_code in (200, 404 if "rollback" in path or "operations" in path else 200)
    assert {asked["actor"] for asked in served.plane.asked} <= {"anonymous"}


async def test_admission_comes_before_a_look_at_the_parameters() -> None:
    answer = await Administered().get("/admin/audit?limit=many", headers={})
    assert answer.status_code == 401


async def test_wrong_token_is_answered_late_as_configured() -> None:
    served = Administered(first_refusal_delay_s=0.2, max_refusal_delay_s=0.2)
    started_s = time.perf_counter()
    assert (await served.get("/admin/models", headers={"X-API-Key": WRONG})).status_code == 401
    assert time.perf_counter() - started_s >= 0.2


@pytest.mark.parametrize(
    ("header", "sent", "expected"),
    [
        (None, "203.0.113.9", "192.0.2.1"),
        ("X-Forwarded-For", "203.0.113.9", "203.0.113.9"),
        ("X-Forwarded-For", "10.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("X-Forwarded-For", "", "192.0.2.1"),
        ("X-Forwarded-For", "9" * 5000, "9" * 64),
    ],
)
async def test_refusal_names_the_address_that_can_be_trusted(header: str | None, sent: str, expected: str) -> None:
    served = Administered(client_address_header=header)
    with structlog.testing.capture_logs() as lines:
        await served.get("/admin/models", headers={"X-Forwarded-For": sent})
    assert [line["address"] for line in lines] == [expected]


async def test_no_token_in_logs_answers_or_documentation() -> None:
    served = Administered("v1", "v2")
    seen = []
    with structlog.testing.capture_logs() as lines:
        sent = (BEARER, {"X-API-Key": WRONG}, {"x-reload-token": READ}, {"X-Admin-Token": WRONG.encode() + b"\xe9"})
        for headers in sent:
            for method, path in ROUTES:
                seen.append(await served.call(method, path, headers=headers, params={"family": WRONG, "wait": WRONG}))
                seen.append(await served.call(method, path, headers=headers))
        served.plane.error = RuntimeError("a defect")
        seen += [await served.call(method, path) for method, path in ROUTES]
    seen += [await served.get(path) for path in ("/docs", "/redoc", "/openapi.json", "/health")]
    texts = [answer.text + str(answer.headers) for answer in seen if WRONG not in str(answer.request.url)]
    assert not any(token in text for token in (READ, RELOAD, ROLLOUT, WRONG) for text in [*texts, str(lines)])


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_defect_is_500_without_its_text_and_with_its_traceback_in_the_log(method: str, path: str) -> None:
    served = Administered()
    served.plane.error = RuntimeError("the inner workings")
    with structlog.testing.capture_logs() as lines:
        answer = await served.call(method, path)
    assert answer.status_code == 500
    assert "internal error; the log has the details" in answer.text
    assert "inner workings" not in answer.text
    assert any(line.get("exc_info") for line in lines)


async def test_request_id_is_echoed_and_in_the_log_if_it_is_safe() -> None:
    served = Administered("v1", "v2")
    for name, sent in (("X-Request-ID", "abc-1"), ("X-Correlation-ID", "abc-2")):
        answer = await served.get("/admin/models", headers=BEARER | {name: sent})
        assert answer.headers["x-request-id"] == sent
    odd = await served.get("/admin/models", headers=BEARER | {"X-Request-ID": "a b"})
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])


async def test_documentation_lists_every_route_with_summary_and_security() -> None:
    document = (await Administered(token_header="X-Custom-Auth").get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert {scheme.get("name", "bearer") for scheme in schemes.values()} == {
        "bearer", "X-Custom-Auth", "X-API-Key", "x-reload-token",
    }  # fmt: skip
    for method, path in ROUTES:
        described = document["paths"][path.replace("op-1", "{operation_id}")][method.lower()]
        assert described["summary"]
        assert {name for entry in described["security"] for name in entry} == set(schemes)
        assert set(described["responses"]) >= {"200", "403", "503"}
    assert "security" not in document["paths"]["/health"]["get"]
    assert json.dumps(document)


async def test_without_admin_there_are_no_admin_routes() -> None:
    async with Server().http() as client:
        assert (await client.post("/admin/reload")).status_code == 404


def test_admin_is_closed_and_its_token_below_the_state_directory_by_default() -> None:
    config = AppConfig.parse({"families": FAMILIES, "state_dir": "/srv/state"})
    assert config.security.open_admin is False
    assert config.token_file == Path("/srv/state/admin-token")
    assert AppConfig.parse({"families": FAMILIES, "security": {"token_file": "/run/t"}}).token_file == Path("/run/t")


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("security", {"token_header": "X Token"}, "security.token_header"),
        ("security", {"max_refusal_delay_s": 60}, "security.max_refusal_delay_s"),
        ("security", {"open": True}, "security.open: unknown key"),
        ("admin", {"wait_s": 700}, "expected at most max_wait_s"),
    ],
)
def test_wrong_setting_is_refused_with_its_path(part: str, value: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        AppConfig.parse({"families": FAMILIES, part: value})
