"""The commands `serve-app kuberay …`: what the manifests of KubeRay take from the Serve config files."""

import ipaddress
import textwrap
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from serve_app.cli.lifecycle import errors_told
from serve_app.cli.serve_config import OUR_APPLICATIONS, read_config
from serve_app.config import AppConfig
from serve_app.config_sources import DirectoryConfig
from serve_app.domain.errors import ConfigError

POD_PORT: Final = 8000
"""The port that KubeRay probes and puts into its Service."""
PROXY_LOCATION: Final = "EveryNode"
DEFAULT_NAME: Final = "serve-app"

kuberay_app = typer.Typer(no_args_is_help=True, help="What KubeRay's manifests take from Serve config files.")


@kuberay_app.command()
def render(
    config: Annotated[Path, typer.Argument(help="Serve config file.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: print it.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the RayService.")] = DEFAULT_NAME,
) -> None:
    """Write the patch that puts a Serve config into a RayService as `spec.serveConfigV2`."""
    with errors_told():
        patch = serve_config_patch(config, name=name)
    if out is None:
        typer.echo(patch, nl=False)
    else:
        out.write_text(patch)


def serve_config_patch(path: Path, *, name: str = DEFAULT_NAME) -> str:
    """Return the patch for a config file. Comments and layout of the file do not reach it.

    KubeRay deploys whenever the text of `serveConfigV2` changes, so what means the same has to read the same.

    Raises:
        ConfigError: The file is none that Pods could be served by, with every problem.
    """
    from serve_app.cli.serve_keys import unknown_keys  # here, since importing Ray takes seconds

    document = read_config(path)
    if problems := [f"{path}: {problem}" for problem in (*unknown_keys(document), *pod_problems(document))]:
        raise ConfigError(problems)
    text = yaml.safe_dump(document, sort_keys=False, width=120)
    origin = f"# From configs/{path.name}: change that and run `make manifests`.\n"
    head = f"apiVersion: ray.io/v1\nkind: RayService\nmetadata:\n  name: {name}\nspec:\n  serveConfigV2: |\n"
    return origin + head + textwrap.indent(text, "    ")


def pod_problems(document: dict[str, Any]) -> list[str]:
    """Say what of a config that `read_config` takes does not fit Pods."""
    problems: list[str] = []
    options = document.get("http_options") or {}
    if _is_loopback(host := str(options.get("host", "0.0.0.0"))):  # noqa: S104  # Ray's default
        problems.append(f"http_options.host: expected 0.0.0.0, so that other Pods reach it, found {host}")
    if (port := options.get("port", POD_PORT)) != POD_PORT:
        problems.append(f"http_options.port: expected {POD_PORT}, which KubeRay probes, found {port}")
    if (location := document.get("proxy_location", PROXY_LOCATION)) != PROXY_LOCATION:
        problems.append(f"proxy_location: expected {PROXY_LOCATION}, else no worker is ever ready, found {location}")
    for i, application in enumerate(document["applications"]):
        if str(application.get("import_path", "")).startswith(OUR_APPLICATIONS):
            problems += [f"applications[{i}].args.{problem}" for problem in _path_problems(application.get("args"))]
    return problems


def _path_problems(args: Any) -> list[str]:
    """Say which paths are relative: the working directory of a replica is none that a volume is mounted to."""
    config = AppConfig.parse(args or {})
    paths = {"state_dir": config.state_dir, "security.token_file": config.security.token_file}
    for name, family in config.families.items():
        if isinstance(family.source, DirectoryConfig):
            paths[f"families.{name}.source.root"] = family.source.root
    return [
        f"{key}: expected an absolute path, where a volume is mounted, found {path!r}"
        for key, path in paths.items()
        if not Path(path).is_absolute()
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
