"""A request that works, made from the golden samples of the bundle that is served."""

import json
from pathlib import Path

from serve_app.cli.state_dir import RunRecord, StateDir, shown


def write_example_request(state: StateDir, model_root: Path) -> bool:
    """Write the first golden row of the current bundle as a request body; False when the bundle has none."""
    try:
        golden = json.loads((model_root / "current" / "golden.json").read_text())
        body = {"instances": golden["inputs"][:1]}
    except (OSError, ValueError, KeyError, TypeError):  # golden samples are optional; serving does not depend on this
        return False
    state.example_request_file.write_text(json.dumps(body) + "\n")
    return True


def curl(state: StateDir, record: RunRecord, family: str) -> str:
    """Return the command that sends it."""
    return (
        f"curl -s -X POST {record.address}/predict/{family} "
        f"-H 'Content-Type: application/json' -d @{shown(state.example_request_file)}"
    )
