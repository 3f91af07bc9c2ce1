"""Train the small forest that the benchmark serves: 100 trees on scikit-learn's iris.

    python -m training.train_iris_forest [--out ROOT] [--joblib PATH]

The bundle under `--out` and the plain file at `--joblib` hold the very same forest, so that every server of the
benchmark answers with the same model.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from serve_app.domain.errors import ServeAppError
from serve_app.domain.signature import Column, Signature
from training.publish import TrainedModels, dumped, golden_rows, publish

FAMILY = "iris"
ROOT = Path(".serve-app/models") / FAMILY
SEED = 0
SIGNATURE = Signature(
    inputs=tuple(
        Column(name=name, unit="cm") for name in ("sepal_length", "sepal_width", "petal_length", "petal_width")
    ),
    outputs=(Column(name="species", dtype="int64", description="0 setosa, 1 versicolor, 2 virginica"),),
)


def train() -> RandomForestClassifier:
    """Fit the forest on all of iris, on plain arrays."""
    rows, species = load_iris(return_X_y=True)
    return RandomForestClassifier(n_estimators=100, random_state=SEED).fit(rows, species)


def main(
    out: Annotated[Path, typer.Option(help="The family's root; the bundle becomes a directory in it.")] = ROOT,
    joblib_path: Annotated[Path | None, typer.Option("--joblib", help="Write the forest to this file, too.")] = None,
    model_version: Annotated[str | None, typer.Option(help="Name of the version; default: the time, in UTC.")] = None,
) -> None:
    """Train the forest, publish its bundle and, where asked for, the plain joblib file."""
    forest = train()
    rows, species = load_iris(return_X_y=True)
    accuracies = cross_val_score(RandomForestClassifier(n_estimators=100, random_state=SEED), rows, species, cv=5)
    if joblib_path is not None:
        joblib_path.write_bytes(dumped(forest))
    try:
        path = publish(
            TrainedModels(SIGNATURE, "classification", {"species": forest}),
            out,
            family=FAMILY,
            version=model_version,
            golden_inputs=golden_rows(np.asarray(rows, dtype=np.float64)),
            metrics={
                "cross_validated_accuracy": {"mean": round(float(accuracies.mean()), 4), "folds": len(accuracies)}
            },
            training={"data": "scikit-learn's iris, all 150 rows", "rows": len(rows), "seed": SEED, "trees": 100},
        )
    except ServeAppError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(code=1) from error
    typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
