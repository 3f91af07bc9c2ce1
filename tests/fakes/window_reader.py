"""Windows in memory, and what versions were trained on."""

from collections import Counter
from collections.abc import Mapping, Sequence

from serve_app.domain.errors import UnavailableError
from serve_app.domain.temporal import TemporalShape
from serve_app.domain.windows import Fate, Record, Refusal, WindowRules
from serve_app.ingress.observation_bodies import read_records
from serve_app.usecases.keep_windows import WindowTable
from serve_app.usecases.read_windows import read_windows
from serve_app.usecases.route_request import Target
from serve_app.usecases.take_observations import Refused, Taken
from serve_app.usecases.window_ports import FleetWindows, WindowsStatus


class FakeWindowReader:
    """Keeps records in a real table and no journal. With `error` it is away; `reads` counts what was read of it."""

    def __init__(self, rules: WindowRules, *, now_s: float, warm_up_steps: int | None = None) -> None:
        self.table = WindowTable(rules)
        self.error: Exception | None = None
        self.reads = 0
        self._rules = rules
        self._now_s = now_s
        self._warm_up_steps = warm_up_steps
        self._counts: Counter[Fate] = Counter()

    @property
    def rules(self) -> WindowRules:
        return self._rules

    def fill(self, entity: str, steps: int, *, end_step: int) -> None:
        """Put the last `steps` steps of an entity, each metric the number of the step modulo 100."""
        for step in range(end_step - steps + 1, end_step + 1):
            values = {name: float(step % 100) for name in self._rules.names}
            self.table.put(Record(entity, step * self._rules.step_s, values))

    async def observe(self, body: bytes, content_type: bytes) -> Taken:
        self._answer()
        counts: Counter[Fate] = Counter()
        refused = []
        for place, record in enumerate(read_records(body, content_type, self._rules.names, max_records=1000)):
            fate = self.table.take(record, now_s=self._now_s)
            if isinstance(fate, Refusal):
                refused.append(Refused(place, fate))
            counts[fate.fate if isinstance(fate, Refusal) else fate] += 1
        self._counts += counts
        return Taken(dict(counts), tuple(refused))

    async def windows(
        self, shape: TemporalShape, entities: Sequence[str] | None, *, unless_revision: int | None = None
    ) -> FleetWindows | None:
        self._answer()
        if self.table.revision == unless_revision:
            return None
        self.reads += 1
        return read_windows(self.table, self._rules, shape, entities=entities, warm_up_steps=self._warm_up_steps)

    async def entities(self) -> tuple[str, ...]:
        self._answer()
        return self.table.entities

    async def status(self) -> WindowsStatus:
        self._answer()
        newest = self.table.newest_step
        return WindowsStatus(
            revision=self.table.revision,
            entities=len(self.table),
            newest_at_s=None if newest is None else float(newest * self._rules.step_s),
            journal_bytes=0,
            memory_bytes=self.table.memory_bytes,
            counts=dict(self._counts),
        )

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error


class FakeTrainedEntities:
    """Knows what each version was trained on; with `is_away` it does not answer."""

    def __init__(self, trained: Mapping[str, Sequence[str]]) -> None:
        self.trained = trained
        self.is_away = False

    async def of(self, target: Target) -> frozenset[str]:
        if self.is_away:
            raise UnavailableError("no replica answers")
        return frozenset(self.trained.get(target.version, ()))
