"""The windows of all entities in one table of numbers, so that reading thousands of them is a few array operations."""

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.domain.windows import Fate, Lack, Record, Refusal, WindowRules, check_record, too_many_entities

_NONE = np.iinfo(np.int64).min
_FIRST_CAPACITY = 64


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of some entities, filled and in the order of time.

    Attributes:
        entities: Their names, (n,).
        values: float32 (n, length, n_metrics), the newest step last; NaN only before an entity's first record.
        newest_step: int64 (n,), the number of the last step in each window.
    """

    entities: tuple[str, ...]
    values: NDArray[np.float32]
    newest_step: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TableImage:
    """All that a table holds, for a file: `values` (n, length, n_metrics), `times` (n, length), `newest_step` (n,).

    Steps lie at `step % length`, as in memory.
    """

    entities: tuple[str, ...]
    values: NDArray[np.float32]
    times: NDArray[np.float64]
    newest_step: NDArray[np.int64]


class WindowTable:
    """Takes records and gives windows. Not safe for several threads.

    A window is a ring: step `s` lies at `s % length`, so that a new step costs no move of the others. 10,000 entities
    with 288 steps of 4 metrics take 72 MB.

    Attributes:
        revision: Grows with every record that changes something, and when entities are forgotten. It begins anywhere,
            so that a table that was read again is not taken for the one before.
    """

    def __init__(self, rules: WindowRules) -> None:
        self._rules = rules
        self._columns = {name: i for i, name in enumerate(rules.names)}
        self._index: dict[str, int] = {}
        self._values = np.empty((0, rules.length, len(rules.metrics)), np.float32)
        self._times = np.empty((0, rules.length), np.float64)
        self._is_whole = np.empty((0, rules.length), np.bool_)
        """Whether a step has all metrics, at the place of the step; derived from the values, to be read at once."""
        self._newest = np.empty(0, np.int64)
        self.revision = random.getrandbits(40)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, entity: object) -> bool:
        return entity in self._index

    @property
    def entities(self) -> tuple[str, ...]:
        """Every entity that a record was taken of, in the order in which they came."""
        return tuple(self._index)

    @property
    def newest_step(self) -> int | None:
        """Number of the newest step of all windows; None while there is none."""
        n = len(self._index)
        return int(self._newest[:n].max()) if n else None

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays."""
        return self._values.nbytes + self._times.nbytes + self._is_whole.nbytes + self._newest.nbytes

    def take(self, record: Record, *, now_s: float) -> Fate | Refusal:
        """Put a record where it belongs and return what became of it, or why it is refused."""
        return check_record(record, self._rules, now_s=now_s) or self.check_room(record.entity) or self.put(record)

    def check_room(self, entity: str, *, others: int = 0) -> Refusal | None:
        """Return why an entity cannot be taken in, or None. `others` new ones are about to be put before it."""
        if entity in self._index or len(self._index) + others < self._rules.max_entities:
            return None
        return too_many_entities(entity, self._rules)

    def put(self, record: Record) -> Fate:
        """Put a record that was checked before, such as one from the journal; it is never refused."""
        rules = self._rules
        step = rules.step_of(record.at_s)
        i = self._index.get(record.entity)
        if i is None:
            i = self._add(record.entity)
        newest = self._newest.item(i)
        if newest != _NONE and step <= newest - rules.length:
            return Fate.LATE
        place = step % rules.length
        if step > newest:
            self._advance(i, newest, step)
        held_s = self._times.item(i, place)
        row = self._values[i, place]
        if math.isnan(held_s):
            fate = Fate.TAKEN if step >= newest else Fate.OUT_OF_ORDER
        elif record.at_s == held_s and all(row[self._columns[k]] == np.float32(v) for k, v in record.values.items()):
            return Fate.DUPLICATE
        else:
            fate = Fate.REPLACED
            if record.at_s < held_s:
                return fate
        for name, value in record.values.items():
            row[self._columns[name]] = value
        self._is_whole[i, place] = len(record.values) == len(row) or not np.isnan(row).any()
        self._times[i, place] = record.at_s
        self.revision += 1
        return fate

    def lacks(self, entities: Sequence[str], *, needed_steps: int) -> dict[str, Lack]:
        """Return what those of `entities` lack that cannot be predicted from; unknown ones lack everything.

        Raises:
            ValueError: A window has fewer steps than are needed.
        """
        if needed_steps > self._rules.length:
            raise ValueError(f"expected at most {self._rules.length} needed steps, got {needed_steps}")
        known = [name for name in entities if name in self._index]
        max_gap = self._rules.max_gap_steps
        found = {name: Lack(0, needed_steps, 0, max_gap) for name in entities if name not in self._index}
        rows, places = self._places(known)
        spanned, longest = span_and_gap(self._is_whole[rows[:, None], places[:, -needed_steps:]])
        for i in np.flatnonzero((spanned < needed_steps) | (longest > max_gap)).tolist():
            found[known[i]] = Lack(int(spanned[i]), needed_steps, int(longest[i]), max_gap)
        return found

    def windows(self, entities: Sequence[str], *, length: int | None = None) -> Windows:
        """Return the last `length` steps (default: all) of known entities, with gaps filled.

        A gap is filled on a straight line between its neighbours, each metric by itself; missing newest values repeat
        the last one.

        Raises:
            KeyError: An entity is not known.
        """
        n_steps = self._rules.length if length is None else length
        values = self._in_order(entities)
        incomplete = np.flatnonzero(np.isnan(values).any(axis=(1, 2)))
        values[incomplete] = filled(values[incomplete])
        values = values[:, self._rules.length - n_steps :]
        newest = self._newest[[self._index[name] for name in entities]]
        return Windows(tuple(entities), np.ascontiguousarray(values), newest)

    def image(self, *, without: Collection[str] = ()) -> TableImage:
        """Return a copy of all that is held, but for some entities."""
        rows = self._rows_but(without)
        names = self.entities
        kept = tuple(names[i] for i in rows.tolist()) if without else names
        return TableImage(kept, self._values[rows], self._times[rows], self._newest[rows])

    def stale(self) -> frozenset[str]:
        """Return the entities that are to be forgotten: their newest record is too old beside the newest of all."""
        newest = self._newest[: len(self._index)]
        if not len(newest) or math.isinf(self._rules.forget_after_s):
            return frozenset()
        oldest = int(newest.max()) - math.ceil(self._rules.forget_after_s / self._rules.step_s)
        names = self.entities
        return frozenset(names[i] for i in np.flatnonzero(newest < oldest).tolist())

    def forget(self, entities: Collection[str]) -> None:
        """Drop entities, for good only once an image without them has taken the place of the journal."""
        if not entities:
            return
        rows = self._rows_but(entities)
        names = self.entities
        self._index = {names[i]: place for place, i in enumerate(rows.tolist())}
        self._values, self._times = self._values[rows], self._times[rows]
        self._is_whole, self._newest = self._is_whole[rows], self._newest[rows]
        self.revision += 1

    @classmethod
    def of_image(cls, image: TableImage, rules: WindowRules) -> "WindowTable":
        """Make a table that holds what an image of the same rules held.

        Raises:
            ValueError: It was made with another length or other metrics.
        """
        expected = (len(image.entities), rules.length, len(rules.metrics))
        if image.values.shape != expected:
            raise ValueError(f"expected windows of shape {expected}, found {image.values.shape}")
        table = cls(rules)
        table._index = {name: i for i, name in enumerate(image.entities)}
        table._values, table._times, table._newest = image.values.copy(), image.times.copy(), image.newest_step.copy()
        table._is_whole = np.logical_not(np.isnan(table._values).any(axis=2))
        return table

    def _add(self, entity: str) -> int:
        i = len(self._index)
        if i == len(self._newest):
            more = max(_FIRST_CAPACITY, i)
            self._values = np.concatenate([self._values, np.full((more, *self._values.shape[1:]), np.nan, np.float32)])
            self._times = np.concatenate([self._times, np.full((more, self._times.shape[1]), np.nan)])
            self._is_whole = np.concatenate([self._is_whole, np.zeros((more, self._is_whole.shape[1]), np.bool_)])
            self._newest = np.concatenate([self._newest, np.full(more, _NONE)])
        self._index[entity] = i
        return i

    def _advance(self, i: int, newest: int, step: int) -> None:
        """Make `step` the newest, and empty the places of the steps since, which hold those of a window ago."""
        length = self._rules.length
        if step == newest + 1:  # nearly always, and much faster than arrays of one
            place = step % length
            self._values[i, place], self._times[i, place], self._is_whole[i, place] = np.nan, np.nan, False
        elif newest == _NONE or step - newest >= length:
            self._values[i], self._times[i], self._is_whole[i] = np.nan, np.nan, False
        else:
            places = np.arange(newest + 1, step + 1) % length
            self._values[i, places], self._times[i, places], self._is_whole[i, places] = np.nan, np.nan, False
        self._newest[i] = step

    def _in_order(self, entities: Sequence[str]) -> NDArray[np.float32]:
        """Return the windows of known entities, float32 (n, length, n_metrics), the oldest step first."""
        rows, places = self._places(entities)
        ordered: NDArray[np.float32] = self._values[rows[:, None], places]
        return ordered

    def _places(self, entities: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of known entities, (n,), and where their steps lie, (n, length), the oldest first."""
        rows = np.array([self._index[name] for name in entities], np.int64)
        length = self._rules.length
        first = (self._newest[rows] + 1) % length
        places = first[:, None] + np.arange(length)
        places[places >= length] -= length
        return rows, places

    def _rows_but(self, entities: Collection[str]) -> NDArray[np.int64]:
        if not entities:
            return np.arange(len(self._index))
        return np.array([i for name, i in self._index.items() if name not in entities], np.int64)


def span_and_gap(present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many steps there are since the first with a record, and the longest gap after it.

    Args:
        present: bool (n, length): for each step of a window, the oldest first, whether it has a record.

    Returns:
        Two of int64 (n,); both 0 where no step has a record.
    """
    length = present.shape[1]
    steps = np.arange(length, dtype=np.int32)
    last = np.maximum.accumulate(np.where(present, steps, np.int32(-1)), axis=1)
    gaps = np.where(last < 0, np.int32(0), steps - last)
    first = np.where(present.any(axis=1), present.argmax(axis=1), length)
    return length - first, gaps.max(axis=1, initial=0).astype(np.int64)


def filled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill NaN between two values of a series on a straight line, and after the last value by repeating it.

    Args:
        values: float32 (n, length, n_metrics).

    Returns:
        The same shape; NaN stays only before the first value of a series.
    """
    missing = np.isnan(values)
    if not missing.any():
        return values
    length = values.shape[1]
    steps = np.arange(length)[None, :, None]
    before = np.maximum.accumulate(np.where(missing, -1, steps), axis=1)
    after = np.minimum.accumulate(np.where(missing, length, steps)[:, ::-1], axis=1)[:, ::-1]
    start = np.take_along_axis(values, np.clip(before, 0, None), axis=1)
    end = np.take_along_axis(values, np.clip(after, None, length - 1), axis=1)
    share = (steps - before) / np.maximum(after - before, 1)
    line = np.where(after == length, start, start + (end - start) * share)
    return np.where(missing & (before >= 0), line, values).astype(np.float32)


def counted(fates: Sequence[Fate | Refusal]) -> Mapping[Fate, int]:
    """Count what became of records."""
    counts: dict[Fate, int] = {}
    for each in fates:
        fate = each.fate if isinstance(each, Refusal) else each
        counts[fate] = counts.get(fate, 0) + 1
    return counts
