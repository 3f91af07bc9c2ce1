"""`serve-app bundle …`: describe, verify and list bundles on this machine. Needs no running server."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.adapters.bundle_reader import read_bundle
from serve_app.adapters.bundle_writer import build_manifest, write_manifest
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.domain.errors import BundleError, ServeAppError
from serve_app.domain.manifest import check_manifest
from serve_app.usecases.ports import BundleRef

bundle_app = typer.Typer(name="bundle", help="Describe, verify and list bundles.", no_args_is_help=True)

DEFAULT_LOADER = "sklearn_targets"
_PIPED_WIDTH = 160


@bundle_app.command("manifest")
def manifest_command(
    models_type: Annotated[str, typer.Option(help="Directory below each target, e.g. regression.")],
    base_dir: Annotated[Path, typer.Option(help="The bundle: holds models/ and scalers/.")] = Path(),
    model_version: Annotated[str | None, typer.Option(help="Default: the present minute, v2026-01-30T0900Z.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the manifest, write nothing.")] = False,
) -> None:
    """Write manifest.json for the files that lie in a directory."""
    with refusals_printed():
        manifest = build_manifest(base_dir, models_type, model_version=model_version)
        if dry_run:
            typer.echo(manifest.to_bytes().decode(), nl=False)
            return
        path = write_manifest(base_dir, manifest)
        typer.echo(f"wrote {path}: version {manifest.model_version}, {len(manifest.sha256)} files")


@bundle_app.command("verify")
def verify_command(
    directory: Annotated[Path, typer.Argument(help="The bundle.")],
    models_type: Annotated[str | None, typer.Option(help="Refuse a bundle of another type.")] = None,
) -> None:
    """Check manifest and digests; nothing is loaded, so nothing in the bundle can run."""
    # Here, because the loaders bring scikit-learn and treelite, which no other command needs.
    from serve_app.adapters.loaders import LOADERS

    with refusals_printed():
        bundle = read_bundle(directory)
        problems = check_manifest(
            bundle.manifest,
            models_type=models_type,
            loaders={name: loader.uses_pickle for name, loader in LOADERS.items()},
            default_loader=DEFAULT_LOADER,
            allowed_pickle_loaders=LOADERS,
        )
        if problems:
            raise BundleError(str(directory), problems)
        size = sum(map(len, bundle.files.values()))
        typer.echo(f"ok: version {bundle.manifest.model_version}, {len(bundle.files)} files, {size:,} bytes")
        typer.echo(f"digest {bundle.digest}")


@bundle_app.command("list")
def list_command(
    root: Annotated[Path, typer.Argument(help="Directory of versions, or one bundle.")],
    quick: Annotated[bool, typer.Option("--quick", help="Read only the manifests, check no digests.")] = False,
) -> None:
    """Show the versions in a directory, newest first, and whether each is sound."""
    with refusals_printed():
        source = LocalDirectorySource(root)
        refs = source.versions()
        broken = sorted({str(path) for path in source.directories()} - {ref.location for ref in refs})
    if not refs and not broken:
        typer.echo(f"no bundle in {root}")
        return
    table = Table("version", "created", "type", "size", "files", "current", "verified")
    notes: list[str] = []
    for ref in refs:
        size, verdict, problems = ("", "not checked", ()) if quick else _verdict(Path(ref.location))
        table.add_row(*_row(ref, size, verdict))
        notes.extend(problems)
    for location in broken:
        _, verdict, problems = _verdict(Path(location))
        table.add_row(Path(location).name, "", "", "", "", "", verdict)
        notes.extend(problems)
    # A pipe has no width; cutting versions short there would be worse than long lines.
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    for note in notes:
        typer.echo(note, err=True)


def _row(ref: BundleRef, size: str, verdict: str) -> tuple[str, ...]:
    facts = ref.facts
    current = "yes" if ref.is_current else ""
    return ref.version, facts["created_at"], facts["models_type"], size, str(facts["files"]), current, verdict


def _verdict(directory: Path) -> tuple[str, str, tuple[str, ...]]:
    """Read the whole bundle: its size, a word for the table, and its problems."""
    try:
        bundle = read_bundle(directory)
    except BundleError as error:
        word = f"no, {len(error.problems)} problem{'s' if len(error.problems) > 1 else ''}"
        return "", word, tuple(f"{directory.name}: {problem}" for problem in error.problems)
    except ServeAppError as error:
        return "", "no", (str(error),)
    return f"{sum(map(len, bundle.files.values())):,}", "yes", ()


@contextmanager
def refusals_printed() -> Iterator[None]:
    """Print what is refused, one problem a line, and exit with 1 instead of a traceback."""
    try:
        yield
    except BundleError as error:
        typer.echo(f"refused: {error.where}", err=True)
        for problem in error.problems:
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(1) from error
    except (ServeAppError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
