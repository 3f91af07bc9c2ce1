"""Imports skops at half its price."""

import sys
from collections.abc import Callable
from typing import Any

_BY_THE_WAY = "sklearn.externals.array_api_compat.torch"


def skops_functions() -> tuple[Callable[..., list[str]], Callable[..., Any]]:
    """Return `get_untrusted_types` and `loads` of skops; only who reads such a file needs them.

    On import skops walks through all of scikit-learn to learn its classes, and on the way through a module that imports
    torch: 190 MB and more than a second for nothing. A None in `sys.modules` makes the walk pass that module by.
    """
    is_barred = _BY_THE_WAY not in sys.modules
    if is_barred:
        sys.modules[_BY_THE_WAY] = None  # type: ignore[assignment]  # Python documents it, typeshed does not
    try:
        from skops.io import get_untrusted_types, loads
    finally:
        if is_barred:
            del sys.modules[_BY_THE_WAY]
    return get_untrusted_types, loads
