"""Splits, for tests that do not care for their details."""

from typing import Any

from serve_app.domain.traffic import N_BUCKETS, KeySource, Split, Targeting, Variant

BY_HEADER = Targeting(source=KeySource.HEADER, name="X-User")


def canary_split(
    weight: int,
    *,
    salt: str = "salt-1",
    versions: tuple[str, str] = ("v1", "v2"),
    pool: str | None = None,
    **facts: Any,
) -> Split:
    """Return `stable` and a `canary` with this weight in buckets of 0.01 %, keyed by the header X-User."""
    stable = Variant(name="stable", version=versions[0], weight=N_BUCKETS - weight)
    canary = Variant(name="canary", version=versions[1], pool=pool, weight=weight)
    return Split.model_validate({"variants": (stable, canary), "salt": salt, "targeting": BY_HEADER, **facts})
