"""`docs/day-two.md`: its commands are commands, and its backup is one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from serve_app.adapters.state_store import SqlStateStore
from serve_app.cli import app
from serve_app.domain.reload import FamilyRecord, StoredState, VersionRef
from tests.pages import DOCS, block, blocks, page

PAGE = "day-two.md"
ROOT = DOCS.parent
SPAN = re.compile(r"`(serve-app [^`]+)`")


def command_lines() -> list[str]:
    """Return all lines that call `serve-app`, in blocks and in sentences."""
    code = "\n".join([*blocks(PAGE, "sh"), *blocks(PAGE, "crontab")])
    called = re.findall(r"(?:^|')(serve-app [^'|\n]+)", code, re.MULTILINE)
    return sorted({line.strip() for line in [*called, *SPAN.findall(page(PAGE))]})


@pytest.mark.parametrize("line", command_lines())
def test_every_command_and_option_exists(line: str) -> None:
    words = shlex.split(re.sub(r"<\(.*?\)", "file", line))[1:]
    command: Any = typer.main.get_command(app)  # of the click that typer brings along
    while hasattr(command, "commands"):
        assert words, f"{line}: a command is missing"
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    with command.make_context("serve-app", words, resilient_parsing=False) as context:
        assert context.command is command


def test_enough_commands_were_found() -> None:
    lines = command_lines()
    assert len(lines) > 12
    assert any("--rayservice -" in line for line in lines)


def test_files_and_directories_that_commands_name_exist() -> None:
    code = "\n".join(blocks(PAGE, "sh"))
    named = set(re.findall(r"\b(?:configs|kuberay)/[\w./-]+", code))
    assert len(named) >= 3
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_names_of_kubernetes_are_those_of_the_manifests() -> None:
    manifests = [file.read_text() for file in (ROOT / "kuberay").rglob("*.yaml")]
    for name in ("serve-app-tokens", "serve-app-reload", "serve-app-ray", "serve-app-serve-svc"):
        assert name in page(PAGE)
        assert any(name in text for text in manifests), name
    service = yaml.safe_load((ROOT / "kuberay" / "base" / "rayservice.yaml").read_text())
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["name"]
    assert f"exec -i -c {head} " in block(PAGE, "crontab", "drift")


def test_cron_reads_its_line_to_the_end() -> None:
    assert "%" not in block(PAGE, "crontab", "drift")


def test_the_backup_of_a_store_in_use_is_restored(tmp_path: Path) -> None:
    directory = tmp_path / ".serve-app"
    store = SqlStateStore(f"sqlite:///{directory / 'state.db'}")
    state = store.read()
    record = FamilyRecord(active=VersionRef(version="v1", digest="d"))
    store.write(state.with_family("iris", record, committed=True), expected_revision=state.revision)
    (line,) = block(PAGE, "sh", "sqlite3.connect").splitlines()
    python, *words = shlex.split(line)
    assert python == "python"
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    later = store.read()
    store.write(later.with_family("iris", FamilyRecord(), committed=True), expected_revision=later.revision)

    store.close()
    restoring = [line for line in block(PAGE, "sh", "cp state-backup.db").splitlines() if not line.startswith("serve-")]
    assert len(restoring) == 2
    for one in restoring:
        subprocess.run(shlex.split(one), cwd=tmp_path, check=True)
    restored: StoredState = SqlStateStore(f"sqlite:///{directory / 'state.db'}").read()
    assert restored.family("iris").active == record.active
    assert restored.generation == 1
