"""`kill -9` of one process of the server after another, under traffic."""

import time
from dataclasses import dataclass

import psutil

from tests.benchmarks.reload_changes import SETTLE_S, Tell
from tests.benchmarks.reload_figures import Kill, cut_and_refused, full_capacity_s, port_back_s
from tests.benchmarks.reload_server import BODY, POLL_S, ReloadServer, wait_until
from tests.traffic import Traffic

BEFORE_S = 2.0
WHOLE_WITHIN_S = 20.0
AFTER_S = 2.0
"""How long the traffic goes on once all is whole again, and at least in any case."""


@dataclass(frozen=True, slots=True)
class Victim:
    """Whom to kill: the title of its process begins so."""

    name: str
    title: str


VICTIMS = (
    Victim("model replica", "ray::ServeReplica:serve-app:iris-cpu"),
    Victim("Reconciler", "ray::ServeReplica:serve-app:reconciler"),
    Victim("Serve controller", "ray::ServeController"),
    Victim("gateway", "ray::ServeReplica:serve-app:gateway"),
    Victim("HAProxy", "haproxy"),
)


def kill_each(server: ReloadServer, *, connections: int, rate: float, tell: Tell) -> list[Kill]:
    """Kill one process of each kind, each after the one before has been replaced."""
    kills = []
    for victim in VICTIMS:
        if not server.find(victim.title):
            tell(f"  {victim.name}: this profile has none")
            continue
        kill = kill_under_traffic(server, victim, connections=connections, rate=rate)
        kills.append(kill)
        tell(
            f"  {kill.victim}: {kill.error_answers} error answers, {kill.cut} cut, {kill.refused} refused of "
            f"{kill.requests:,}; port back {kill.port_back_s:.1f} s, full {kill.full_capacity_s} s, "
            f"replaced {kill.replaced_s} s, longest {kill.longest_ms:.0f} ms"
        )
    return kills


def kill_under_traffic(server: ReloadServer, victim: Victim, *, connections: int, rate: float) -> Kill:
    """Kill one process and keep the traffic up until it has been replaced."""
    with Traffic.started(server.url, BODY, connections=connections, rate=rate) as traffic:
        time.sleep(SETTLE_S)
        start_s = time.monotonic()
        time.sleep(BEFORE_S)
        # The newest: an HAProxy that was replaced at a change of its configuration lives on until its connections end.
        newest = max(server.find(victim.title), key=psutil.Process.create_time)
        born_s = newest.create_time()
        newest.kill()
        killed_s = time.monotonic()

        def is_replaced() -> bool:
            return any(process.create_time() > born_s for process in server.find(victim.title)) and server.is_whole()

        replaced = wait_until(is_replaced, timeout_s=WHOLE_WITHIN_S)
        replaced_s = time.monotonic() - killed_s
        time.sleep(AFTER_S)
        until_s = time.monotonic()
    answers = [answer for answer in traffic.answers if answer.at_s >= killed_s - POLL_S]
    cut, refused = cut_and_refused(answers)
    before_per_s = len(traffic.between(start_s, killed_s)) / (killed_s - start_s)
    return Kill(
        victim=victim.name,
        rate_per_s=round(before_per_s, 1),
        requests=len(answers),
        error_answers=sum(answer.status not in (0, 200) for answer in answers),
        cut=cut,
        refused=refused,
        port_back_s=round(port_back_s(answers, since_s=killed_s), 2),
        full_capacity_s=full_capacity_s(answers, since_s=killed_s, until_s=until_s, per_s=before_per_s),
        replaced_s=round(replaced_s, 1) if replaced else None,
        longest_ms=round(max(answer.latency_s for answer in answers) * 1e3, 1),
    )
