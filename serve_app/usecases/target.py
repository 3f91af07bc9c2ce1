"""Where one request goes."""

from dataclasses import dataclass

from serve_app.domain.signature import Signature
from serve_app.usecases.coalesce_requests import Coalescer
from serve_app.usecases.count_evidence import VariantTally


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where one request goes. `reason` says why.

    It is `default`, `forced`, `named` or `fallback`, or one of a split: `segment`, `cookie`, `hash`, `weight`.
    `has_tensors` is the signature's: such a model takes no rows of JSON. `tally` counts the answers where a split sent
    the request, `salt` is that split's. Compared by identity: a cache key.
    """

    family: str
    version: str
    pool: str
    variant: str
    reason: str
    generation: int
    signature: Signature
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    coalescer: Coalescer
    has_tensors: bool = False
    tally: VariantTally | None = None
    salt: str = ""
