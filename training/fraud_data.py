"""Card payments that nobody ever made: the data of the fraud detector, drawn from a stated process with a fixed seed.

**Synthetic.** No row is a payment, and no figure measured on them tells anything about real fraud. They are there to
give the detector what real ones have: few positives, patterns that overlap, and labels that are sometimes wrong.

The process, payment by payment:

1. A card has a usual amount (log-normal around 35), an age in days (exponential, mean 900) and a home.
2. 98.6 % of payments are honest. The amount is log-normal around the card's usual one; the hour leans to the afternoon;
   the distance from home is exponential with a mean of 15 km, but one payment in 25 is made on a journey (mean 900 km);
   payments in the last 24 hours follow a Poisson law with mean 2; merchants' risk is Beta(2, 8).
3. 1.4 % are fraud, of one of three kinds.
   *Testing* (40 %): many small payments in a short time without the card, at any hour.
   *Takeover* (40 %): an amount several times the usual one, at night, far from home, at risky merchants.
   *Quiet* (20 %): like an honest payment but for a somewhat higher amount and risk. Hardly anybody can tell it.
4. 3 % of the frauds are never reported and carry the label of an honest payment; 0.05 % of honest ones are disputed and
   carry the label of fraud.

Rows are independent and come in no order, so any split of them is one by chance.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # pandas ships no types
from numpy.typing import NDArray

SEED = 20260130
FRAUD_SHARE = 0.014
LABEL = "is_fraud"
DESCRIPTION = "synthetic card payments made by training/fraud_data.py; no real ones"

_MISSED_SHARE = 0.03
_DISPUTED_SHARE = 0.0005
_TESTING, _TAKEOVER = 0.4, 0.8


@dataclass(frozen=True, slots=True)
class Payments:
    """Payments, one row each, and whether they are labelled as fraud: int64 (n,), 0 or 1."""

    rows: pd.DataFrame
    labels: NDArray[np.int64]


def payments(n_rows: int, *, seed: int = SEED) -> Payments:
    """Draw payments by the process above; the same for the same arguments."""
    random = np.random.default_rng(seed)
    is_fraud = random.random(n_rows) < FRAUD_SHARE
    kind = random.random(n_rows)
    is_testing = is_fraud & (kind < _TESTING)
    is_takeover = is_fraud & (kind >= _TESTING) & (kind < _TAKEOVER)
    is_quiet = is_fraud & (kind >= _TAKEOVER)

    usual_amount = random.lognormal(np.log(35.0), 0.6, n_rows)
    ratio = random.lognormal(0.0, 0.7, n_rows)
    ratio = np.where(is_testing, random.lognormal(np.log(0.1), 0.5, n_rows), ratio)
    ratio = np.where(is_takeover, random.lognormal(np.log(5.0), 0.6, n_rows), ratio)
    ratio = np.where(is_quiet, ratio * 1.5, ratio)

    hour = random.normal(15.0, 4.5, n_rows) % 24
    hour = np.where(is_testing, random.uniform(0.0, 24.0, n_rows), hour)
    hour = np.where(is_takeover, random.normal(2.5, 2.5, n_rows) % 24, hour)

    is_journey = (random.random(n_rows) < 0.04) | (is_takeover & (random.random(n_rows) < 0.7))
    distance_km = random.exponential(np.where(is_journey, 900.0, 15.0))

    payments_24h = random.poisson(np.where(is_testing, 9.0, np.where(is_takeover, 4.0, 2.0)))
    risk = random.beta(np.where(is_takeover, 4.0, np.where(is_quiet, 3.0, 2.0)), np.where(is_takeover, 4.0, 8.0))
    is_card_present = random.random(n_rows) < np.where(is_testing, 0.02, np.where(is_takeover, 0.3, 0.65))
    age_days = random.exponential(np.where(is_takeover, 500.0, 900.0)).astype(np.int64)

    labels = np.where(random.random(n_rows) < np.where(is_fraud, _MISSED_SHARE, _DISPUTED_SHARE), ~is_fraud, is_fraud)
    rows = pd.DataFrame(
        {
            "amount": (usual_amount * ratio).round(2),
            "usual_amount": usual_amount.round(2),
            "hour": hour.round(3),
            "distance_km": distance_km.round(2),
            "merchant_risk": risk.round(4),
            "payments_24h": payments_24h.astype(np.int64),
            "card_age_days": age_days,
            "is_card_present": is_card_present,
        }
    )
    return Payments(rows, labels.astype(np.int64))
