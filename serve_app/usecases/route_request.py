"""From the name of a family to the version that answers, and the coalescer that carries the rows there."""

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from serve_app.domain.errors import NoModelError, UnknownFamilyError, UnknownVersionError
from serve_app.domain.exposure import GatewayReport
from serve_app.domain.reload import RoutingTable
from serve_app.domain.retraining import RetrainStatus
from serve_app.domain.source_status import SourceStatus
from serve_app.domain.status import LoadedVersion, ReplicaStatus
from serve_app.domain.traffic import Assignment, RequestFacts
from serve_app.usecases.coalesce_requests import BatchLimits, Coalescer
from serve_app.usecases.count_evidence import EvidenceBook
from serve_app.usecases.ports import PredictClient
from serve_app.usecases.split_requests import OF_A_SPLIT, SplitRoute
from serve_app.usecases.take_turns import Turns
from serve_app.usecases.target import Target

__all__ = ["LONGEST_WAIT_S", "NO_MODEL_RETRY_AFTER_S", "RequestRouter", "Target"]
NO_MODEL_RETRY_AFTER_S = 5
LONGEST_WAIT_S = 1.0
"""A table that asks for more has the time of another clock; it is taken up at once."""


class RequestRouter:
    """Holds the route of every family. Lives on one event loop; a request reads it once and keeps what it read."""

    def __init__(
        self,
        families: Sequence[str],
        *,
        default_family: str,
        clients: Mapping[tuple[str, str], PredictClient],
        limits: BatchLimits,
        on_batch: Callable[[int], None] | None = None,
        now_s: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._families = tuple(families)
        self._default_family = default_family
        self._clients = clients
        self._limits = limits
        self._on_batch = on_batch
        self._targets: dict[str, Target] = {}
        self._by_pool: dict[tuple[str, str, str], Target] = {}
        self._by_version: dict[tuple[str, str], Target] = {}
        self._named: dict[tuple[str, str], Target] = {}
        self._turns: dict[tuple[str, str], Turns] = {}
        self._statuses: dict[tuple[str, str], tuple[ReplicaStatus, ...]] = {}
        self._table = RoutingTable()
        self._now_s = now_s
        self._waiting: RoutingTable | None = None
        self._untold: list[Target] = []
        self._draw = draw
        self._evidence = EvidenceBook()
        self.splits: dict[str, SplitRoute] = {}
        """Those in use, by family; read by every request, therefore no property."""

    @property
    def families(self) -> tuple[str, ...]:
        """Names of all configured families."""
        return self._families

    @property
    def default_family(self) -> str:
        """The family that answers where a route names none."""
        return self._default_family

    @property
    def table(self) -> RoutingTable:
        """The table in use."""
        return self._table

    @property
    def generation(self) -> int:
        """Generation of the table in use; it grows with every commit."""
        return self._table.generation

    def target(self, family: str, forced_version: str | None = None) -> Target:
        """Return where a request for `family` (empty: the default family) goes if no split has a say in it.

        Raises:
            UnknownFamilyError: No such family is configured.
            UnknownVersionError: The version that the client forces is not loaded.
            NoModelError: The family has no model yet.
        """
        if self._waiting is not None and self._now_s() >= self._waiting.effective_at_s:
            self._untold = self.take_up()
        name = family or self._default_family
        target = self._targets.get(name)
        if target is None:
            if name not in self._families:
                raise UnknownFamilyError(name, self._families)
            raise NoModelError(
                f"family {name!r} has no model yet: {self.last_error(name) or 'its first version is loading'}",
                retry_after_s=NO_MODEL_RETRY_AFTER_S,
            )
        if forced_version is None:
            return target
        forced = self._by_version.get((name, forced_version))
        if forced is None:
            raise UnknownVersionError(name, forced_version, sorted(v for f, v in self._by_version if f == name))
        return forced

    def split_of(self, family: str) -> SplitRoute | None:
        """Return the split that a request for `family` (empty: the default family) is subject to now, if any."""
        if self._waiting is not None and self._now_s() >= self._waiting.effective_at_s:
            self._untold = self.take_up()
        return self.splits.get(family or self._default_family)

    def assign(self, family: str, facts: RequestFacts, *, counts: bool = True) -> tuple[Target, Assignment | None]:
        """Return where a request goes that may be subject to a split, and why: None where the family has no split.

        It is counted as evidence; `counts` is false for whoever only asks. Raises as `target`.
        """
        route = self.split_of(family)
        if route is None:
            return self.target(family, facts.forced_version), None
        target, assignment = route.choose(facts, counts=counts)
        if target is not None:
            return target, assignment
        if facts.forced_version is not None:
            return self.target(family, facts.forced_version), assignment
        return replace(self.target(family), reason="fallback"), assignment

    def evidence(self, gateway: str) -> GatewayReport:
        """Return what was counted of all splits since this process began."""
        self._evidence.keep({family: route.split.salt for family, route in self.splits.items()})
        return self._evidence.report(gateway)

    def named(self, family: str, version: str) -> Target | None:
        """Return where a request goes that names a version, or None where no replica has reported it."""
        return self._named.get((family, version))

    def current(self, family: str) -> Target | None:
        """Return where requests for `family` go by default, or None while it has no model."""
        return self._targets.get(family)

    def statuses(self, family: str) -> tuple[ReplicaStatus, ...]:
        """Return the last report of every replica of a family, over all its pools."""
        return tuple(status for (name, _), all_ in self._statuses.items() if name == family for status in all_)

    def loaded(self, family: str, version: str) -> LoadedVersion | None:
        """Return what is known of a loaded version, or None."""
        found = (v for status in self.statuses(family) for v in status.versions if v.version == version)
        return next(found, None)

    def load(self, family: str) -> tuple[int, int]:
        """Return how many requests of a family wait, and how many calls for it are out."""
        coalescers = [target.coalescer for (name, _, _), target in self._by_pool.items() if name == family]
        return sum(one.queued for one in coalescers), sum(one.calls_out for one in coalescers)

    def source(self, family: str) -> SourceStatus | None:
        """Return how the source of a family is, or None while the control plane has not told."""
        return self._table.sources.get(family)

    def retraining(self, family: str) -> RetrainStatus | None:
        """Return how the trainings of a family are, or None where it has none that the control plane tells of."""
        return self._table.retraining.get(family)

    def stage(self, family: str) -> str | None:
        """Return the registry's word for what answers (`champion`, `Production`), or None: it is none of its choice."""
        route, source = self._table.routes.get(family), self._table.sources.get(family)
        return source.selector if route is not None and route.follows and source is not None else None

    def awaiting_first(self, families: Collection[str]) -> list[str]:
        """Return those that may have their first answer soon: they have no model, and nothing says why not.

        Where a version is routed to, it is only the replicas that can say why they have not got it.
        """
        return sorted(
            name
            for name in families
            if name not in self._targets
            and not any(status.last_error for status in self.statuses(name))
            and (name in self._table.routes or name not in self._table.troubles)
        )

    def last_error(self, family: str) -> str | None:
        """Return why the family has not what it should follow and what last went wrong on its replicas, or None."""
        told = [self._table.troubles.get(family), *(status.last_error for status in self.statuses(family))]
        return "; ".join(dict.fromkeys(error for error in told if error)) or None

    def fallback(self, target: Target) -> Target | None:
        """Return where to go when no replica holds the version of `target` any more, if that takes the same inputs.

        It is the last good one, if loaded; or what is routed to now, where `target` was before the last commit or is
        on trial.
        """
        route = self._table.routes.get(target.family)
        if (target.reason != "default" and target.reason not in OF_A_SPLIT) or route is None:
            return None
        version = route.last_good if route.version == target.version else route.version
        known = self._by_version.get((target.family, version or ""))
        if version == target.version or known is None or known.signature.inputs != target.signature.inputs:
            return None
        return replace(known, reason="fallback", generation=self._table.generation)

    def observe(self, family: str, pool: str, statuses: Sequence[ReplicaStatus]) -> None:
        """Take in the reports of all routable replicas of a pool.

        An empty list changes nothing: replicas that cannot be reached now may still answer predictions.
        """
        if not statuses:
            return
        self._statuses[family, pool] = tuple(statuses)
        held = {loaded.version for status in statuses for loaded in status.versions}
        new = [version for version in held if (family, version, pool) not in self._by_pool]
        gone = [key for key in self._by_pool if key[0] == family and key[2] == pool and key[1] not in held]
        for version in new:
            built = self._by_pool[family, version, pool] = self._build(family, pool, version, reason="forced")
            if (family, version) not in self._by_version:
                self._by_version[family, version] = built
                self._named[family, version] = replace(built, reason="named")
        for key in gone:
            del self._by_pool[key]
            self._forget(family, key[1], pool)
        if (new or gone) and (route := self.splits.get(family)) is not None:
            route.renew()

    def _forget(self, family: str, version: str, pool: str) -> None:
        """Have another pool answer for a version where this one was the one to go to, if any holds it."""
        if self._by_version[family, version].pool != pool:
            return
        others = (target for (f, v, _), target in self._by_pool.items() if (f, v) == (family, version))
        other = next(others, None)
        if other is None:
            del self._by_version[family, version], self._named[family, version]
            return
        self._by_version[family, version] = other
        self._named[family, version] = replace(other, reason="named")
        present = self._targets.get(family)
        if present is not None and present.version == version:
            self._targets[family] = replace(other, reason="default", generation=self._table.generation)

    def follow(self, table: RoutingTable) -> list[Target]:
        """Route by this table from now on, unless it is older than the one in use; return the targets that changed.

        A version that no replica has reported yet is taken up by a later call, after `observe`: until then the family
        keeps its present target. A table that is to be taken up later waits until then (`waits_s`, `take_up`); the
        first request after that moment takes it up, however late this event loop is.
        """
        if table.generation > self._table.generation and 0 < table.effective_at_s - self._now_s() <= LONGEST_WAIT_S:
            self._waiting = table
            return []
        if self._waiting is not None and table.generation >= self._waiting.generation:
            self._waiting = None
        return self._follow(table)

    def waits_s(self) -> float | None:
        """Return in how many seconds a table is to be taken up, or None when none waits."""
        return None if self._waiting is None else max(self._waiting.effective_at_s - self._now_s(), 0.0)

    def take_up(self) -> list[Target]:
        """Route by the table that waits, whatever the time is, and return what changed and was not told of yet."""
        changed, self._untold = self._untold, []
        if self._waiting is not None:
            table, self._waiting = self._waiting, None
            changed += self._follow(table)
        return changed

    def _follow(self, table: RoutingTable) -> list[Target]:
        if table.generation < self._table.generation:
            return []
        # A table that a commit pushed says nothing of sources and trainings; the next one that is pulled does.
        told = {"sources": self._table.sources, "retraining": self._table.retraining}
        is_new = table.generation != self._table.generation
        self._table = table if table.sources else table.model_copy(update=told)
        changed = []
        for family, route in table.routes.items():
            present = self._targets.get(family)
            if family not in self._families:
                continue
            if present is not None and present.version == route.version:
                if present.generation != table.generation:
                    self._targets[family] = replace(present, generation=table.generation)
                continue
            known = self._by_version.get((family, route.version))
            if known is not None:
                self._targets[family] = replace(known, reason="default", generation=table.generation)
                changed.append(self._targets[family])
        self._follow_splits(table, is_new=is_new)
        return changed

    def _follow_splits(self, table: RoutingTable, *, is_new: bool) -> None:
        """Take up the splits of a table; one that it does not name is over from the next request on."""
        for family in [family for family in self.splits if family not in table.splits]:
            del self.splits[family]
        for family, split in table.splits.items():
            present = self.splits.get(family)
            if family not in self._families:
                continue
            if present is None or present.split != split:
                tally = self._evidence.of(family, split.salt)
                self.splits[family] = SplitRoute(split, tally, find=partial(self._find, family), draw=self._draw)
            elif is_new:
                present.renew()
        self._evidence.keep({family: route.split.salt for family, route in self.splits.items()})

    def _find(self, family: str, version: str, pool: str | None) -> Target | None:
        """Return a loaded version on a pool, or on the one that is gone to by default, as of this generation."""
        known = self._by_pool.get((family, version, pool)) if pool else self._by_version.get((family, version))
        return None if known is None else replace(known, generation=self._table.generation)

    def awaited(self, table: RoutingTable) -> list[str]:
        """Return the families of which `table` names a version that no replica has reported yet."""
        wanted: list[tuple[str, str, str | None]]
        wanted = [(family, route.version, None) for family, route in table.routes.items()]
        for family, split in table.splits.items():
            wanted += [(family, variant.version, variant.pool) for variant in split.variants]
            if split.shadow is not None:
                wanted.append((family, split.shadow.version, split.shadow.pool))
        missing = (family for family, version, pool in wanted if self._find(family, version, pool) is None)
        return [family for family in dict.fromkeys(missing) if family in self._families]

    def _build(self, family: str, pool: str, version: str, *, reason: str) -> Target:
        reported = (v for status in self._statuses[family, pool] for v in status.versions if v.version == version)
        loaded = next(reported, None)
        assert loaded is not None, "a version is routed to only after a replica reported it"
        client = self._clients[family, pool]
        return Target(
            family=family,
            version=version,
            pool=pool,
            variant="stable",
            reason=reason,
            generation=self._table.generation,
            signature=loaded.signature,
            input_names=loaded.signature.input_names,
            output_names=loaded.signature.output_names,
            coalescer=Coalescer(
                client, version, self._limits, turns=self._turns_of(family, pool), on_batch=self._on_batch
            ),
            has_tensors=loaded.signature.has_tensors,
        )

    def _turns_of(self, family: str, pool: str) -> Turns:
        turns = self._turns.get((family, pool))
        if turns is None:
            client = self._clients[family, pool]
            turns = self._turns[family, pool] = Turns(lambda: client.capacity)
        return turns
