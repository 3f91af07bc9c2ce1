"""Joins labels to the predictions that they speak of, and counts losses: as metrics, and as evidence of splits."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from serve_app.domain.errors import InvalidInputError, OverloadedError
from serve_app.domain.evidence import Measurement
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.labels import (
    Fate,
    GivenLabel,
    LossRule,
    Predicted,
    PredictionId,
    PredictionRecord,
    by_row,
    default_rules,
    losses_of,
)
from serve_app.domain.statistics import Moments
from serve_app.domain.traffic import Reason
from serve_app.usecases.label_ports import LabelMeter, PredictionLog
from serve_app.usecases.ports import Clock
from serve_app.usecases.remember_predictions import PredictionMemory

MAX_AT_ONCE: Final = 8
"""Batches of labels that wait for their turn; one is joined at a time, for all want the same disk."""
ROWS_AT_A_TIME: Final = 200
"""Rows that are counted before other requests get their turn: some 0.7 ms."""
MAX_SALTS: Final = 64
"""Splits whose losses are remembered: those of the last months, for labels may be weeks late."""
_DRAWN: Final = frozenset(reason.value for reason in Reason if reason.is_random)
_NAMED: Final = Reason.SEGMENT.value

Losses = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Moments]]]]
"""By family, salt, variant and loss."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A label that was not joined: its place in the request, what became of it, and why."""

    place: int
    fate: Fate
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of the labels of a request, in rows, and of the first that were not joined why."""

    counts: Mapping[Fate, int]
    problems: tuple[Problem, ...] = ()


class LossBook:
    """Losses of joined labels since the process began, where a split had sent the request. Lives on one event loop.

    What chance assigned and what segments named are kept apart, as all evidence is: only the former may be compared.
    """

    def __init__(self) -> None:
        self._drawn: OrderedDict[tuple[str, str], dict[str, dict[str, list[float]]]] = OrderedDict()
        self._named: OrderedDict[tuple[str, str], dict[str, dict[str, list[float]]]] = OrderedDict()

    def add(self, family: str, by: Predicted, losses: Mapping[str, float]) -> None:
        """Count the losses of one row, if a split had a say in who predicted it."""
        if not by.salt or (by.reason not in _DRAWN and by.reason != _NAMED):
            return
        book = self._named if by.reason == _NAMED else self._drawn
        variants = book.setdefault((family, by.salt), {})
        book.move_to_end((family, by.salt))
        sums = variants.setdefault(by.variant, {})
        for name, loss in losses.items():
            of_name = sums.setdefault(name, [0, 0.0, 0.0])
            of_name[0] += 1
            of_name[1] += loss
            of_name[2] += loss * loss
        if len(book) > MAX_SALTS:
            book.popitem(last=False)

    def losses(self, *, named: bool = False) -> Losses:
        """Return the losses of what chance assigned, or of the named entities of segments."""
        found: dict[str, dict[str, Mapping[str, Mapping[str, Moments]]]] = {}
        for (family, salt), variants in (self._named if named else self._drawn).items():
            found.setdefault(family, {})[salt] = {
                variant: {
                    name: Moments(count=int(count), total=total, squares=squares)
                    for name, (count, total, squares) in sums.items()
                }
                for variant, sums in variants.items()
            }
        return found

    def merged_into(self, report: GatewayReport) -> GatewayReport:
        """Return what a gateway reports with the losses in it, as `Measurement.means`.

        A split that the report no longer names is there with its losses alone.
        """
        return report.model_copy(
            update={
                "families": _with_losses(report.families, self.losses()),
                "segments": _with_losses(report.segments, self.losses(named=True)),
            }
        )


def _with_losses(
    measured: Mapping[str, Mapping[str, Mapping[str, Measurement]]], losses: Losses
) -> dict[str, dict[str, dict[str, Measurement]]]:
    found = {family: {salt: dict(variants) for salt, variants in salts.items()} for family, salts in measured.items()}
    for family, salts in losses.items():
        for salt, variants in salts.items():
            counts = found.setdefault(family, {}).setdefault(salt, {})
            for variant, means in variants.items():
                before = counts.get(variant, Measurement())
                counts[variant] = before.model_copy(update={"means": {**before.means, **means}})
    return found


class JoinLabels:
    """Takes labels. Lives on one event loop; whatever waits for a disk does so in another thread.

    Losses are counted in the process that takes the label, and a row is counted once among all that share the disk.
    """

    def __init__(self, memory: PredictionMemory, meter: LabelMeter, *, clock: Clock, max_problems: int = 20) -> None:
        self._memory = memory
        self._meter = meter
        self._clock = clock
        self._max_problems = max_problems
        self._turn = asyncio.Lock()
        self._waiting = 0
        self.book = LossBook()

    async def join(self, labels: Sequence[tuple[int, GivenLabel]]) -> Joined:
        """Join labels, each with its place in the request.

        Raises:
            OverloadedError: Too many batches wait already.
            StoreError: The disk cannot be used; labels may be sent again, those that were joined are then duplicates.
        """
        if self._waiting >= MAX_AT_ONCE:
            raise OverloadedError(f"expected at most {MAX_AT_ONCE} batches of labels at once; try again")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._join(labels)
        finally:
            self._waiting -= 1

    def count_refused(self, n: int) -> None:
        """Count labels that were refused before anybody looked for their predictions."""
        if n:
            self._meter.count_labels("", "", Fate.REFUSED, n)

    async def _join(self, labels: Sequence[tuple[int, GivenLabel]]) -> Joined:
        memory = self._memory
        own = {label.prediction_id.number for _, label in labels if memory.is_own(label.prediction_id)}
        if any(memory.is_waiting(number) for number in own):
            await memory.write()
        recalled = {PredictionId(memory.prefix, n): known for n in own if (known := memory.recall(n)) is not None}
        logs = {family: memory.log_of(family) for family in memory.families}
        rules = {family: memory.rules_of(family) for family in memory.families}
        rows = await asyncio.to_thread(_checked, labels, recalled, logs, rules)
        return await self._counted(rows)

    async def _counted(self, rows: Sequence["_Row"]) -> Joined:
        counts = dict.fromkeys(Fate, 0)
        by_version: dict[tuple[str, str, Fate], int] = {}
        now_s = self._clock.now_s()
        for place, row in enumerate(rows, 1):
            if place % ROWS_AT_A_TIME == 0:
                await asyncio.sleep(0)  # requests to predict wait on the same event loop
            counts[row.fate] += row.n_rows
            record = row.record
            key = (row.family, record.by.version if record is not None else "", row.fate)
            by_version[key] = by_version.get(key, 0) + row.n_rows
            if row.fate is Fate.JOINED and record is not None:
                self.book.add(row.family, record.by, row.losses)
                for name, loss in row.losses.items():
                    self._meter.observe_loss(row.family, record.by, name, loss)
                known_at_s = now_s if row.given.at_s is None else row.given.at_s
                self._meter.observe_delay(row.family, max(known_at_s - record.at_s, 0.0))
        for (family, version, fate), n in by_version.items():
            self._meter.count_labels(family, version, fate, n)
        problems = (Problem(row.place, row.fate, row.reason) for row in rows if row.fate is not Fate.JOINED)
        return Joined(counts, tuple(one for one, _ in zip(problems, range(self._max_problems), strict=False)))


@dataclass(slots=True)
class _Row:
    """What is known of one row of a label so far, or of a whole label that speaks of no row."""

    place: int
    given: GivenLabel
    fate: Fate
    reason: str = ""
    n_rows: int = 1
    row: int = 0
    family: str = ""
    record: PredictionRecord | None = None
    losses: dict[str, float] = field(default_factory=dict)


def _checked(
    labels: Sequence[tuple[int, GivenLabel]],
    recalled: Mapping[PredictionId, tuple[str, PredictionRecord]],
    logs: Mapping[str, PredictionLog],
    rules: Mapping[str, tuple[LossRule, ...]],
) -> list[_Row]:
    """Find the predictions, compute the losses, and note what has a label now; in a thread of its own."""
    found: dict[PredictionId, tuple[str, PredictionRecord | None]] = dict(recalled)
    missing = {label.prediction_id for _, label in labels} - found.keys()
    for family, log in logs.items():
        if missing:
            kept = log.find(missing)
            # A process has one run of numbers for all families: what is expired in one may be kept in another.
            found |= {one: (family, record) for one, record in kept.items() if record is not None or one not in found}
            missing -= {one for one, record in kept.items() if record is not None}
    rows = [row for place, given in labels for row in _rows(place, given, found.get(given.prediction_id), rules)]
    for family, log in logs.items():
        of_family = [row for row in rows if row.fate is Fate.JOINED and row.family == family]
        claimed = log.claim([(row.given.prediction_id, row.row) for row in of_family]) if of_family else []
        for row, is_new in zip(of_family, claimed, strict=True):
            if is_new is None:
                row.fate, row.reason = Fate.EXPIRED, _EXPIRED
            elif not is_new:
                row.fate, row.reason = Fate.DUPLICATE, "this row has a label already, which stays"
    return rows


_EXPIRED: Final = "the prediction is older than what is kept"


def _rows(
    place: int,
    given: GivenLabel,
    found: tuple[str, PredictionRecord | None] | None,
    rules: Mapping[str, tuple[LossRule, ...]],
) -> list[_Row]:
    if found is None:
        return [_Row(place, given, Fate.UNKNOWN, "no prediction with this id is remembered", given.n_rows)]
    family, record = found
    if record is None:
        return [_Row(place, given, Fate.EXPIRED, _EXPIRED, given.n_rows, family=family)]
    try:
        labelled = by_row(given, len(record.rows))
    except InvalidInputError as error:
        return [_Row(place, given, Fate.REFUSED, str(error), given.n_rows, family=family, record=record)]
    rows = []
    for number, label in labelled:
        row = _Row(place, given, Fate.JOINED, row=number, family=family, record=record)
        outputs = dict(zip((name for name, _ in record.by.columns), record.rows[number], strict=False))
        try:
            row.losses = losses_of(rules[family] or default_rules(record.by.columns), label, outputs)
        except InvalidInputError as error:
            where = f"row {number}: " if isinstance(given.label, list) else ""
            row.fate, row.reason = Fate.REFUSED, where + str(error)
        rows.append(row)
    return rows
