"""The set-up is for a whole process, so each case runs in one of its own."""

import json
import subprocess
import sys
from typing import Any

SET_UP = """
import threading
import structlog
from serve_app.adapters.log_setup import set_up_logging
set_up_logging("info", deployment="gateway", replica="r1")
log = structlog.get_logger("x")
"""


def lines(program: str) -> list[dict[str, Any]]:
    """Run a program and return what it logged."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SET_UP + program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_lines_are_json_with_time_level_message_and_context_in_every_thread() -> None:
    first, second, third = lines("""
log.info("route changed", family="forecaster")
log.debug("not shown")
thread = threading.Thread(target=lambda: log.warning("from a thread", replica="own"))
thread.start(); thread.join()
structlog.contextvars.bind_contextvars(request_id="abc")
log.info("predicted", odd=object, text="ü")
""")
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "message": "route changed", "level": "info", "family": "forecaster", "deployment": "gateway", "replica": "r1",
    }  # fmt: skip
    assert (second["message"], second["deployment"], second["replica"]) == ("from a thread", "gateway", "own")
    assert (third["request_id"], third["text"]) == ("abc", "ü")


def test_traceback_is_one_line_without_local_variables() -> None:
    (line,) = lines("""
def fails(secret):
    raise ValueError("broken")
try:
    fails("do-not-show" * 2)
except ValueError:
    log.exception("request failed")
""")
    assert line["exception"][0]["exc_value"] == "broken"
    assert [frame["name"] for frame in line["exception"][0]["frames"]] == ["<module>", "fails"]
    assert "do-not-showdo-not-show" not in json.dumps(line)


def test_exception_given_as_a_value_is_told_too() -> None:
    (line,) = lines("""log.error("request failed", exc_info=ValueError("kept"))""")
    assert line["exception"][0]["exc_value"] == "kept"


def test_a_disk_too_full_for_logs_stops_nothing() -> None:
    """Serve's own logger writes to a file, and it has replaced sys.stderr: its complaints come back to it."""
    program = """
import logging, sys

class ToLogger:
    def write(self, text):
        logging.getLogger("serve").error(text)

    def flush(self):
        pass

logging.getLogger("serve").addHandler(logging.FileHandler("/dev/full"))
sys.stderr = ToLogger()
logging.getLogger("serve").error("one")
log.info("two")
log.info("three")
print("alive", flush=True)
"""
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device, no path of ours
        done = subprocess.run(
            [sys.executable, "-c", SET_UP + program], stdout=subprocess.PIPE, stderr=full, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert done.stdout == "alive\n"
