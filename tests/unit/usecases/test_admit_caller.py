import asyncio

import pytest
import structlog

from serve_app.domain.access import FailureTable, ForbiddenError, Scope, UnauthenticatedError
from serve_app.usecases.admit_caller import ANONYMOUS, MAX_PAUSED, CallerAdmission
from tests.fakes.clock import FakeClock
from tests.unit.ingress.administered import READ, RELOAD, ROLLOUT, Refusals, Tokens

WRONG = "wrong-token-0123456789"


class Door:
    """An admission whose pauses are noted, and last until `let_go` where it is held."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.pauses: list[float] = []
        self.clock = FakeClock()
        self.refusals = Refusals()
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.admission = CallerAdmission(
            Tokens(), failures=FailureTable(first_delay_s=0.25, max_delay_s=4.0), meter=self.refusals,
            clock=self.clock, is_open=is_open, pause=self._pause,
        )  # fmt: skip

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.let_go.wait()

    async def knock(self, *secrets: str, scope: Scope = Scope.RELOAD, address: str = "192.0.2.1") -> str:
        return await self.admission.admit(secrets, scope, address=address, path="/reload")

    async def fail(self, *secrets: str, address: str = "192.0.2.1") -> None:
        with pytest.raises(UnauthenticatedError):
            await self.knock(*secrets, address=address)


@pytest.mark.parametrize(
    ("secret", "scope", "name"),
    [
        (READ, Scope.READ, "ann"),
        (RELOAD, Scope.READ, "ci"),
        (RELOAD, Scope.RELOAD, "ci"),
        (ROLLOUT, Scope.READ, "ops"),
        (ROLLOUT, Scope.RELOAD, "ops"),
        (ROLLOUT, Scope.ROLLOUT, "ops"),
    ],
)
async def test_token_with_the_scope_gets_in_under_its_name(secret: str, scope: Scope, name: str) -> None:
    door = Door()
    assert await door.knock(secret, scope=scope) == name
    assert (door.refusals.reasons, door.pauses) == ([], [])


@pytest.mark.parametrize(("secret", "scope"), [(READ, Scope.RELOAD), (READ, Scope.ROLLOUT), (RELOAD, Scope.ROLLOUT)])
async def test_token_without_the_scope_is_refused_at_once(secret: str, scope: Scope) -> None:
    door = Door()
    with pytest.raises(ForbiddenError, match=f"expected a token with the scope '{scope.value}'"):
        await door.knock(secret, scope=scope)
    assert (door.refusals.reasons, door.pauses) == (["scope"], [])


async def test_best_of_several_tokens_counts() -> None:
    assert await Door().knock(WRONG, READ, RELOAD) == "ci"


async def test_no_token_is_refused_without_a_pause() -> None:
    door = Door()
    await door.fail()
    assert (door.refusals.reasons, door.pauses) == (["missing"], [])


async def test_wrong_tokens_are_slowed_ever_more() -> None:
    door = Door()
    for _ in range(6):
        await door.fail(WRONG)
    assert door.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert door.refusals.reasons == ["unknown"] * 6


async def test_address_that_fails_slows_no_other_and_no_right_token() -> None:
    door = Door()
    door.let_go.clear()
    waiting = [asyncio.create_task(door.fail(WRONG)) for _ in range(8)]
    while len(door.pauses) < len(waiting):
        await asyncio.sleep(0)
    assert await door.knock(RELOAD, address="192.0.2.2") == "ci"
    assert await door.knock(RELOAD) == "ci", "a right token from that very address does not wait either"
    assert not any(task.done() for task in waiting)
    door.let_go.set()
    await asyncio.gather(*waiting)
    await door.fail(WRONG, address="192.0.2.2")
    assert door.pauses[-1] == 0.25


async def test_number_of_waiting_refusals_is_bounded() -> None:
    door = Door()
    door.let_go.clear()
    waiting = [asyncio.create_task(door.fail(WRONG, address=str(n))) for n in range(MAX_PAUSED)]
    while len(door.pauses) < MAX_PAUSED:
        await asyncio.sleep(0)
    await door.fail(WRONG)
    assert len(door.pauses) == MAX_PAUSED
    door.let_go.set()
    await asyncio.gather(*waiting)
    await door.fail(WRONG)
    assert len(door.pauses) == MAX_PAUSED + 1


async def test_refusals_are_logged_without_the_token() -> None:
    door = Door()
    with structlog.testing.capture_logs() as lines:
        await door.fail(WRONG)
        with pytest.raises(ForbiddenError):
            await door.knock(READ)
    first, second = lines
    assert (first["log_level"], first["address"], first["path"]) == ("warning", "192.0.2.1", "/reload")
    assert (first["token_name"], second["token_name"]) == (None, "ann")
    assert WRONG not in str(lines)
    assert READ not in str(lines)


async def test_open_door_lets_everybody_in_and_says_so_once() -> None:
    with structlog.testing.capture_logs() as lines:
        door = Door(is_open=True)
    assert [line["log_level"] for line in lines] == ["warning"]
    assert await door.knock() == ANONYMOUS
    assert await door.knock(WRONG) == ANONYMOUS
    assert await door.knock(READ, scope=Scope.ROLLOUT) == "ann", "a known token still names its owner"
    assert (door.refusals.reasons, door.pauses) == ([], [])
