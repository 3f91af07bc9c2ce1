"""What is logged."""

from typing import Annotated, Literal

from pydantic import Field

from serve_app.config_part import Part


class LoggingConfig(Part):
    """Log lines go to stderr: JSON, or coloured text where stderr is a terminal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: Annotated[bool, Field(description="one line for each request; off, for it costs throughput")] = False
