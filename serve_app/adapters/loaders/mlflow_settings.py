"""What the operator allows the `mlflow` loader to do. A model cannot widen it."""

from dataclasses import dataclass
from typing import Literal

Format = Literal["skops", "pickle", "cloudpickle", "joblib", "pyfunc"]
"""How a model is saved: a scikit-learn estimator in one of four formats, or whatever else MLflow loads (`pyfunc`)."""

TREE_TYPES = ("sklearn.tree._tree.Tree",)
"""What skops needs trust in to load a forest; its node indices are checked here before the first prediction."""


@dataclass(frozen=True, slots=True)
class MlflowLoaderSettings:
    """Permissions of the loader.

    `formats` are those it may load: skops alone runs no code of the model, and needs no other permission; any other
    needs `mlflow` among the loaders that may read pickle, too. `trusted_types` are the types beyond scikit-learn's
    harmless ones that a skops file may hold. `environment_mismatch` says what becomes of a model that was saved with
    other versions of Python, scikit-learn, numpy or torch than the server has.
    """

    formats: tuple[Format, ...] = ("skops",)
    trusted_types: tuple[str, ...] = TREE_TYPES
    environment_mismatch: Literal["warn", "refuse", "ignore"] = "warn"

    @property
    def uses_pickle(self) -> bool:
        """True unless skops, which runs no code of the model, is all that is allowed."""
        return set(self.formats) != {"skops"}
