"""A request that works, made from the golden samples of the bundle that is served."""

import json
from pathlib import Path
from typing import Any

from serve_app.cli.state_dir import RunRecord, StateDir, shown


def write_example_request(state: StateDir, model_root: Path) -> bool:
    """Write the first golden row of the current bundle as a request body; False when the bundle has none."""
    bundle = model_root / "current"
    try:
        golden = json.loads((bundle / "golden.json").read_text())
        body = _window(bundle, golden["inputs"][0]) or {"instances": golden["inputs"][:1]}
    except (OSError, ValueError, KeyError, TypeError):  # golden samples are optional; serving does not depend on this
        return False
    state.example_request_file.write_text(json.dumps(body) + "\n")
    return True


def _window(bundle: Path, row: list[float]) -> dict[str, Any] | None:
    """Write a row of a temporal model as the window that it is; None for a row of any other."""
    config = bundle / "config.json"
    if not config.is_file():
        return None
    n_metrics = len(json.loads(config.read_text())["metrics"])
    _, end_time_s, *values = row
    steps = [values[first : first + n_metrics] for first in range(0, len(values), n_metrics)]
    return {"windows": [{"server": "example", "end_time": end_time_s, "values": steps}]}


def curl(state: StateDir, record: RunRecord, family: str) -> str:
    """Return the command that sends it."""
    return (
        f"curl -s -X POST {record.address}/predict/{family} "
        f"-H 'Content-Type: application/json' -d @{shown(state.example_request_file)}"
    )
