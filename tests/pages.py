"""What stands in the pages of `docs/`: their code, so that tests can run it."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    """Return a page."""
    return (DOCS / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    """Return the code of one language on a page, from top to bottom."""
    return [code for found, code in _BLOCK.findall(page(name)) if found == language]


def block(name: str, language: str, part: str) -> str:
    """Return the only code of one language on a page that holds `part`."""
    (found,) = [code for code in blocks(name, language) if part in code]
    return found
