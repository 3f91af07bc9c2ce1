"""How the commands print what a server says: as plain text, for versions and reasons come from bundles."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 160


def wide_console() -> Console:
    """Return a console for tables. A pipe has no width; cutting versions short there would be worse than long lines."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def plain(value: object) -> Text:
    """Return a value as text without markup; what would move the cursor or change colours is replaced."""
    told = "" if value is None else str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in told))


def table_of(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table in which nothing is cut off: what is too long goes on in the next line."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain(value) for value in row))
    return table
