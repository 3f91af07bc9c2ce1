"""Train a random forest on scikit-learn's iris and register it with MLflow.

    python -m training.train_iris [--tracking-uri URI] [--alias champion] [--stage Production] [--threshold 0.9]

A third of the flowers is held out; every version is judged on these same rows.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split

from training.registering import Alias, FormatOption, IfMissing, RequirePromotion, Stage, TrackingUri, Trained, run

NAME = "iris-random-forest"
COLUMNS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
SPLIT_SEED = 0
HELD_OUT_SHARE = 1 / 3


def train(*, trees: int, seed: int) -> Trained:
    """Fit the forest on two thirds of the flowers; `seed` is the forest's, the split stays the same."""
    rows, species = load_iris(return_X_y=True, as_frame=True)
    rows.columns = list(COLUMNS)
    known, held_out, known_species, held_out_species = train_test_split(
        rows, species, test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=species
    )

    def judge(estimator: Any) -> Mapping[str, float]:
        predicted = estimator.predict(held_out)
        return {
            "accuracy": float(accuracy_score(held_out_species, predicted)),
            "f1_score": float(f1_score(held_out_species, predicted, average="macro")),
        }

    return Trained(
        RandomForestClassifier(n_estimators=trees, random_state=seed).fit(known, known_species),
        example=held_out,
        judge=judge,
        decisive="accuracy",
        params={"trees": trees, "seed": seed, "rows": len(known), "held_out_rows": len(held_out)},
        tags={"data": "scikit-learn's iris"},
    )


def main(
    tracking_uri: TrackingUri = None,
    name: Annotated[str, typer.Option(help="Name of the registered model.")] = NAME,
    alias: Alias = "champion",
    stage: Stage = None,
    threshold: Annotated[float, typer.Option(help="Least accuracy on the held-out part.")] = 0.9,
    trees: Annotated[int, typer.Option(min=1, help="Trees of the forest.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the forest.")] = 0,
    saved_as: FormatOption = "skops",
    if_missing: IfMissing = False,
    require_promotion: RequirePromotion = False,
) -> None:
    """Train the forest, register it, and promote it if it is good enough and not worse than the champion."""
    run(
        lambda: train(trees=trees, seed=seed),
        tracking_uri=tracking_uri,
        name=name,
        alias=alias,
        stage=stage,
        threshold=threshold,
        saved_as=saved_as,
        if_missing=if_missing,
        require_promotion=require_promotion,
    )


if __name__ == "__main__":
    typer.run(main)
