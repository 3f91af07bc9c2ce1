"""What a person sees while the server starts: one line for each phase, moving on a terminal, plain in a log."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Phase:
    """One line; `report` changes what it says."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.note = ""

    def report(self, note: str, *, done: int = 0, total: int | None = None) -> None:
        """Show `note`, and a bar where `total` is known."""
        self.note = note
        self._progress.update(self._task, note=note, completed=done, total=total)


class Phases:
    """The display; a context manager. Where output is no terminal it prints each phase once, at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._moving = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not self._moving,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def phase(self, title: str, note: str = "") -> Iterator[Phase]:
        """Show a phase while the body runs; it counts as done when the body does not raise."""
        started = monotonic()
        task = self._progress.add_task(title, total=None, note=note)
        phase = Phase(self._progress, task)
        yield phase
        self._progress.update(task, total=1, completed=1)
        if not self._moving:
            self._console.print(f"  {title:<9} {monotonic() - started:5.1f} s  {phase.note or note}", highlight=False)
