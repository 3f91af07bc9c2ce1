"""The changes under way, one a family at most: started, resumed, waited for, and written into the audit log."""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from serve_app.domain import reload
from serve_app.domain.errors import ReloadError, ServeAppError, StoreError
from serve_app.domain.following import RETRY_DELAYS_S
from serve_app.domain.reload import AuditEntry, Change, FamilyRecord, Operation, Outcome, Phase, VersionRef
from serve_app.usecases.forget_oldest import forget_oldest
from serve_app.usecases.keep_state import StateKeeper
from serve_app.usecases.ports import Clock, ReloadMeter
from serve_app.usecases.reload_model import ModelReloader, audit_entry

KEPT_OPERATIONS = 200
log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Run:
    """An operation under way. `done` is set when it has ended."""

    operation: Operation
    to: VersionRef
    actor: str
    action: str
    reason: str
    done: asyncio.Event


class ChangeRuns:
    """Carries changes out, each in a task of its own. Lives on one event loop."""

    def __init__(
        self, reloaders: Mapping[str, ModelReloader], *, keeper: StateKeeper, clock: Clock, meter: ReloadMeter
    ) -> None:
        self._reloaders = reloaders
        self._keeper = keeper
        self._clock = clock
        self._meter = meter
        self._runs: dict[str, Run] = {}
        self._ended: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resume_at_s = dict.fromkeys(reloaders, 0.0)
        self.troubles: dict[str, str] = {}

    def under_way(self, family: str) -> Run | None:
        """Return the run of a family, or None."""
        return self._runs.get(family)

    async def launch(
        self,
        family: str,
        ref: VersionRef,
        *,
        actor: str,
        action: str,
        reason: str,
        undoes: VersionRef | None = None,
        follows: bool = False,
    ) -> Run:
        """Save a new change and start it; `undoes` is a bundle that is not to be taken up again by itself.

        Raises:
            StoreError: It could not be saved; nothing is started.
        """
        now_s = self._clock.now_s()
        change = Change(
            operation_id=uuid.uuid4().hex,
            to=ref,
            phase=Phase.TRIAL,
            actor=actor,
            reason=reason,
            started_at_s=now_s,
            deadline_s=now_s,
            follows=follows,
        )

        def step(record: FamilyRecord) -> FamilyRecord:
            started = reload.start(record, change)
            if undoes is None:
                return started
            return reload.distrust(started, undoes, reason=f"rolled back by {actor}", now_s=now_s)

        before = self._keeper.state.family(family).active
        await self._keeper.update(family, step)
        return self._spawn(family, change, from_version=before.version if before else None, action=action)

    async def resume(self, family: str) -> None:
        """Go on with the stored change of a family, if it has one and its last failure is long enough ago.

        The store is read first: a write whose answer was lost may have been made all the same.

        Raises:
            StoreError: The store cannot be read now.
        """
        if self._clock.monotonic_s() < self._resume_at_s[family]:
            return
        record = (await self._keeper.refresh()).family(family)
        change = record.change
        if change is None:
            return
        before = record.last_good if change.phase is Phase.RELEASE else record.active
        log.info("change resumed", family=family, version=change.to.version, phase=change.phase.value)
        self._spawn(family, change, from_version=before.version if before else None, action="resume")

    async def wait(self, run: Run, wait_s: float) -> Operation:
        """Wait for the end of a run, for `wait_s` seconds at most, and return how far it is."""
        try:
            async with asyncio.timeout(wait_s):
                await run.done.wait()
        except TimeoutError:
            return self._seen(run)
        return run.operation

    async def operation(self, operation_id: str) -> Operation | None:
        """Return an operation: under way, lately ended, or from the audit log."""
        for run in self._runs.values():
            if run.operation.operation_id == operation_id:
                return self._seen(run)
        if operation_id in self._ended:
            return self._ended[operation_id]
        entries = await self._keeper.audit(family=None, operation_id=operation_id, limit=1)
        return _operation_of(entries[0]) if entries else None

    def unchanged(self, family: str) -> Operation:
        """Count, and return, an operation that had nothing to do."""
        active = self._keeper.state.family(family).active
        version = active.version if active else None
        self._meter.count_reload(family, Outcome.UNCHANGED)
        return Operation(
            operation_id="",
            family=family,
            outcome=Outcome.UNCHANGED,
            from_version=version,
            to_version=version,
            generation=self._keeper.state.generation,
        )

    def _spawn(self, family: str, change: Change, *, from_version: str | None, action: str) -> Run:
        operation = Operation(
            operation_id=change.operation_id,
            family=family,
            outcome=Outcome.RUNNING,
            from_version=from_version,
            to_version=change.to.version,
            started_at_s=change.started_at_s,
        )
        run = Run(operation, change.to, change.actor, action, change.reason, asyncio.Event())
        self._runs[family] = run
        task = asyncio.create_task(self._carry_out(family, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def _carry_out(self, family: str, run: Run) -> None:
        outcome, detail = Outcome.RELOADED, ""
        try:
            await self._reloaders[family].run()
        except ReloadError as error:
            outcome, detail = Outcome.FAILED, str(error)
        except StoreError as error:
            outcome, detail = Outcome.FAILED, f"the state could not be saved: {error}; it is tried again"
            self._resume_at_s[family] = self._clock.monotonic_s() + RETRY_DELAYS_S[0]
        except Exception as error:
            log.exception("change failed", family=family)
            outcome, detail = Outcome.FAILED, f"internal error ({type(error).__name__}); the log has the details"
            self._resume_at_s[family] = self._clock.monotonic_s() + RETRY_DELAYS_S[0]
        self._end(family, run, outcome, detail)
        await self._write_audit(family, run)

    def _end(self, family: str, run: Run, outcome: Outcome, detail: str) -> None:
        run.operation = run.operation.model_copy(
            update={
                "outcome": outcome,
                "detail": detail,
                "ended_at_s": self._clock.now_s(),
                "generation": self._keeper.state.generation,
            }
        )
        if outcome is Outcome.FAILED:
            self.troubles[family] = f"{run.to.version} was not taken up: {detail}"
        else:
            self.troubles.pop(family, None)
        self._ended[run.operation.operation_id] = run.operation
        forget_oldest(self._ended, most=KEPT_OPERATIONS)
        del self._runs[family]
        self._meter.count_reload(family, outcome)
        run.done.set()

    async def _write_audit(self, family: str, run: Run) -> None:
        entry = audit_entry(
            self._keeper.state,
            family,
            run.operation,
            actor=run.actor,
            action=run.action,
            reason=run.reason,
            at_s=self._clock.now_s(),
        )
        try:
            await self._keeper.append(entry)
        except ServeAppError as error:
            log.error("audit entry lost", entry=entry.model_dump(mode="json"), reason=str(error))

    def _seen(self, run: Run) -> Operation:
        """Return an operation with the phase it is in now."""
        change = self._keeper.state.family(run.operation.family).change
        return run.operation.model_copy(update={"phase": change.phase if change else None})


def _operation_of(entry: AuditEntry) -> Operation:
    return Operation(
        operation_id=entry.operation_id,
        family=entry.family,
        outcome=entry.outcome,
        from_version=entry.from_version,
        to_version=entry.to_version,
        detail=entry.detail,
        ended_at_s=entry.at_s,
        generation=entry.generation,
    )
