"""A loader whose libraries are imported when the first bundle asks for it."""

from collections.abc import Callable
from functools import cached_property

from serve_app.usecases.ports import Bundle, Loader, Predictor


class OnDemandLoader:
    """Stands for a loader until it is needed: scikit-learn takes two seconds that a replica of another kind can spare.

    `uses_pickle` is known before, for it decides whether a bundle is looked at by the loader at all.
    """

    def __init__(self, make: Callable[[], Loader], *, uses_pickle: bool) -> None:
        self._make = make
        self._uses_pickle = uses_pickle

    @property
    def uses_pickle(self) -> bool:
        """True when loading may run code from the bundle, so that the operator must allow it."""
        return self._uses_pickle

    def load(self, bundle: Bundle) -> Predictor:
        """Load by the loader that this stands for.

        Raises:
            BundleError: The contents do not fit it, with all problems.
        """
        return self._loader.load(bundle)

    @cached_property
    def _loader(self) -> Loader:
        return self._make()
