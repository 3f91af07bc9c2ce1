"""Quantities as Kubernetes writes them: `500m`, `2`, `1536Mi`."""

import math
import re
from fractions import Fraction
from typing import Final

_SUFFIXES: Final[dict[str, Fraction]] = {
    "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
}  # fmt: skip
_QUANTITY: Final = re.compile(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti|)")


def whole_units(quantity: object) -> int:
    """Return a quantity in whole units, rounded up as Go's `Quantity.Value()` does.

    Raises:
        ValueError: It is no quantity.
    """
    return math.ceil(_units(quantity))


def milli_units(quantity: object) -> int:
    """Return a quantity in thousandths, rounded up as Go's `Quantity.MilliValue()` does.

    Raises:
        ValueError: It is no quantity.
    """
    return math.ceil(_units(quantity) * 1000)


def _units(quantity: object) -> Fraction:
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f"expected a quantity of Kubernetes, found {quantity!r}")
    return Fraction(found[1]) * _SUFFIXES[found[2]]
