"""Train the fraud detector on synthetic payments and register it with MLflow.

    python -m training.train_fraud [--tracking-uri URI] [--alias champion] [--stage Production] [--threshold 0.6]

The payments come from the process that `training.fraud_data` states; nobody made them. A quarter is held out, and every
version is judged on these same rows. The model answers with probabilities: where to draw the line is for the caller.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve

from training.fraud_data import DESCRIPTION, SEED, payments
from training.registering import Alias, FormatOption, IfMissing, RequirePromotion, Stage, TrackingUri, Trained, run

NAME = "fraud_detection_model"
PRECISION = 0.9
"""The recall that counts is the one at this precision: one false alarm for nine frauds found."""


def recall_at(precision: float, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the largest recall that any threshold reaches with at least this precision."""
    precisions, recalls, _ = precision_recall_curve(labels, scores)
    return float(recalls[precisions >= precision].max())


def train(*, rows: int, trees: int, seed: int) -> Trained:
    """Fit the forest on three quarters of the payments; `seed` is the forest's, the payments stay the same."""
    drawn = payments(rows)
    n_known = rows * 3 // 4
    held_out, labels = drawn.rows.iloc[n_known:], drawn.labels[n_known:]

    def judge(estimator: Any) -> Mapping[str, float]:
        scores = estimator.predict_proba(held_out)[:, 1]
        return {
            "average_precision": float(average_precision_score(labels, scores)),
            "recall_at_precision_90": recall_at(PRECISION, labels, scores),
            "brier": float(brier_score_loss(labels, scores)),
            "fraud_share": float(labels.mean()),
        }

    # Leaves of a few rows keep the probabilities honest; weights for the few frauds would not.
    forest = RandomForestClassifier(n_estimators=trees, min_samples_leaf=5, random_state=seed, n_jobs=-1)
    return Trained(
        forest.fit(drawn.rows.iloc[:n_known], drawn.labels[:n_known]),
        example=held_out,
        judge=judge,
        decisive="average_precision",
        params={"trees": trees, "seed": seed, "rows": n_known, "held_out_rows": len(labels), "data_seed": SEED},
        tags={"data": DESCRIPTION},
        predict_fn="predict_proba",
    )


def main(
    tracking_uri: TrackingUri = None,
    name: Annotated[str, typer.Option(help="Name of the registered model.")] = NAME,
    alias: Alias = "champion",
    stage: Stage = None,
    threshold: Annotated[float, typer.Option(help="Least average precision on the held-out part.")] = 0.6,
    rows: Annotated[
        int, typer.Option(min=1000, help="Payments to draw; versions compare at the same number.")
    ] = 40_000,
    trees: Annotated[int, typer.Option(min=1, help="Trees of the forest.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the forest.")] = 0,
    saved_as: FormatOption = "skops",
    if_missing: IfMissing = False,
    require_promotion: RequirePromotion = False,
) -> None:
    """Train the detector, register it, and promote it if it is good enough and not worse than the champion."""
    run(
        lambda: train(rows=rows, trees=trees, seed=seed),
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
