import gc
import weakref
from collections.abc import Iterator

import pytest

from serve_app.adapters.process_memory import ProcessMemory


class Ring:
    """A thing in a reference cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def dropped() -> weakref.ref[Ring]:
    return weakref.ref(Ring())


def test_cycles_of_what_came_later_are_collected_and_the_rest_stays_frozen() -> None:
    memory = ProcessMemory()
    n_frozen = gc.get_freeze_count()
    ring = dropped()
    assert ring() is not None
    memory.give_back()
    assert ring() is None
    assert gc.get_freeze_count() >= 0.9 * n_frozen > 1000


def test_cycles_that_somebody_else_froze_are_collected_too() -> None:
    memory = ProcessMemory()
    ring = dropped()
    gc.freeze()
    gc.collect()
    assert ring() is not None
    memory.give_back()
    assert ring() is None
    assert gc.get_freeze_count() > 1000


def test_full_collection_is_paid_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ProcessMemory()
    gc.freeze()
    thaws: list[None] = []
    unfreeze = gc.unfreeze
    monkeypatch.setattr(gc, "unfreeze", lambda: thaws.append(unfreeze()))
    memory.give_back()
    memory.give_back()
    assert len(thaws) == 1
