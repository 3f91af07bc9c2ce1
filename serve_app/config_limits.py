"""Bounds of requests."""

from typing import Annotated

from pydantic import Field

from serve_app.config_part import Part


class LimitsConfig(Part):
    """Bounds that keep one client from hurting the others. A request above one is refused at once, never truncated."""

    max_body_bytes: Annotated[
        int, Field(gt=0, description="4 MiB: thousands of rows, far below a replica's memory")
    ] = 4 << 20
    max_rows_per_request: Annotated[
        int, Field(gt=0, description="rows in one request; 4096 predict in well under 1 s")
    ] = 4096
    max_batch_rows: Annotated[
        int, Field(gt=0, description="rows in one call to a replica; 1024 keeps a call short")
    ] = 1024
    max_batch_bytes: Annotated[int, Field(gt=0, description="bytes of rows in one call to a replica")] = 8 << 20
    max_inflight_calls: Annotated[
        int, Field(gt=0, description="calls out at once to one replica; 2 keeps it busy while an answer travels")
    ] = 2
    max_queued_requests: Annotated[
        int, Field(gt=0, description="requests that wait per family; above: 503 at once")
    ] = 2000
    request_timeout_s: Annotated[float, Field(gt=0, description="longest wait for an answer, in seconds")] = 30.0
    max_explained_rows: Annotated[
        int, Field(gt=0, description="rows or servers in one explanation; each costs as much as many predictions")
    ] = 64
    max_explanations: Annotated[
        int, Field(gt=0, description="explanations out at once from one gateway; above: 503 at once")
    ] = 2
