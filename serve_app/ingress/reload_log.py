"""What the log says of a change that somebody asked for: the fields that dashboards and searches of old know."""

from typing import Final

from serve_app.domain.reload import Operation

STAGE: Final = "stable"


def registry_facts(operation: Operation, models_dir: str, stage: str | None) -> dict[str, str | None]:
    """Return `model_uri`, `version` and `stage` of what a change leads to.

    `models_dir` is the place that stands before a version, `models:/<name>` for a registry. `stage` is the registry's
    word for what answers now, or None where it is none of the registry's choice.
    """
    version = operation.to_version
    return {
        "model_uri": f"{models_dir}/{version}" if version else None,
        "version": version,
        "stage": stage or STAGE,
    }
