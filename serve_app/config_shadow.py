"""`families.<name>.shadow`: bounds of the copies that a version on trial gets, and when two answers agree."""

from typing import Annotated

from pydantic import Field

from serve_app.config_part import Part


class ShadowConfig(Part):
    """Copies of answered requests. A rollout's plan says whether there are any, and of how many requests."""

    at_once: Annotated[
        int,
        Field(ge=1, le=1024, description="copies of one gateway under way; 2: a shadow is measured, not kept up with"),
    ] = 2
    timeout_s: Annotated[
        float, Field(gt=0, le=600, description="seconds after which a copy has failed; nobody waits for it")
    ] = 2.0
    max_lag_s: Annotated[
        float,
        Field(ge=0, le=10, description="no copy is sent while the gateway is later than this, for it is busy enough"),
    ] = 0.005
    busy_share: Annotated[
        float,
        Field(
            gt=0, le=1,
            description="share of the time in which copies may be under way; 0.1: live requests do not notice them",
        ),
    ] = 0.1  # fmt: skip
    rtol: Annotated[
        float,
        Field(
            ge=0, allow_inf_nan=False,
            description="numbers agree when they differ by at most atol + rtol * |live|; 0.001 is what nobody notices",
        ),
    ] = 1e-3  # fmt: skip
    atol: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="what matters of it near zero, in the output's unit")
    ] = 1e-9
    keeps_inputs: Annotated[
        bool,
        Field(description="keep the inputs answered most differently, for the report; off: inputs may be personal"),
    ] = False
