import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli.profile import (
    INSTANCE_VARIABLE,
    Profile,
    ProxyPorts,
    UnsupportedProfileError,
    choose_profile,
    haproxy_binary,
    haproxy_on_loopback,
    server_environment,
)

PORTS = ProxyPorts(haproxy_stats=28404, haproxy_metrics=29101, fallback_http=28500, fallback_grpc=29500)
needs_haproxy = pytest.mark.skipif(haproxy_binary() is None, reason="Ray brings HAProxy on Linux only")

CONFIG = """defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend prometheus
    bind :29101
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:28404
"""


def environment(chosen: Profile, runtime_dir: str = "/tmp/sa-12345678") -> dict[str, str]:
    return server_environment(
        chosen, runtime_dir=Path(runtime_dir), token_file=Path(runtime_dir, "ray-token"), ports=PORTS
    )


def test_throughput_profile_never_comes_without_haproxy() -> None:
    """Ray serves on the head node only when it is optimized for throughput and has no HAProxy."""
    for chosen in Profile:
        variables = environment(chosen)
        assert variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == variables["RAY_SERVE_ENABLE_HA_PROXY"]


def test_every_profile_is_of_one_machine_and_asks_for_a_token() -> None:
    for chosen in Profile:
        variables = environment(chosen)
        assert variables["RAY_AUTH_MODE"] == "token"
        assert variables["RAY_AUTH_TOKEN_PATH"] == "/tmp/sa-12345678/ray-token"
        assert variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert variables[INSTANCE_VARIABLE] == "/tmp/sa-12345678"


def test_two_instances_share_no_path() -> None:
    one, other = (environment(Profile.THROUGHPUT, directory) for directory in ("/tmp/sa-1", "/tmp/sa-2"))
    paths = {name for name, value in one.items() if value.startswith("/")}
    assert paths
    assert all(one[name] != other[name] for name in paths)


def test_socket_paths_fit_into_what_a_unix_socket_may_have() -> None:
    variables = environment(Profile.THROUGHPUT)
    node_id, temporary = "/" + 56 * "f", ".4194304.tmp"  # what Ray puts before the last part, HAProxy after it
    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        assert len(variables[name] + node_id + temporary) <= 107


@needs_haproxy
def test_haproxy_starts_with_its_side_ports_on_loopback(tmp_path: Path) -> None:
    config, script = tmp_path / "haproxy.cfg", tmp_path / "haproxy"
    config.write_text(CONFIG)
    script.write_text(haproxy_on_loopback(PORTS))
    script.chmod(0o700)

    checked = subprocess.run([script, "-db", "-f", config, "-c"], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
    binds = [line.strip() for line in config.read_text().splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:29101", "bind 127.0.0.1:8000", "bind 127.0.0.1:28404"]


@needs_haproxy
def test_without_a_wish_the_machine_gets_the_fast_profile() -> None:
    assert choose_profile(None) is Profile.THROUGHPUT
    assert choose_profile(Profile.SAFE) is Profile.SAFE


def test_off_linux_the_fast_profile_is_refused_and_the_safe_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose_profile(None) is Profile.SAFE
    with pytest.raises(UnsupportedProfileError, match=r"found darwin.*use --profile safe"):
        choose_profile(Profile.THROUGHPUT)
