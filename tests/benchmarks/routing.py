"""What the choice of a target costs a request: `python -m tests.benchmarks.routing`.

Nanoseconds, the best and the median of several rounds: for a family without a split, and with one for every place that
a targeting key can stand in, from the headers and the body of the request to its target, counted as evidence.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from serve_app.domain.reload import Route, RoutingTable
from serve_app.domain.traffic import KeySource, Split, Variant
from serve_app.domain.traffic import Targeting as KeyPlace
from serve_app.ingress.targeting import Targeting
from serve_app.ingress.wire import entity_of
from serve_app.usecases.coalesce_requests import BatchLimits
from serve_app.usecases.route_request import RequestRouter
from tests.fakes.predict_client import FakePredictClient
from tests.reports import report

FAMILY = "iris"
N_KEYS = 10_000
HEADERS = (
    (b"host", b"127.0.0.1:8000"), (b"user-agent", b"wrk"), (b"accept", b"*/*"),
    (b"content-type", b"application/json"), (b"content-length", b"43"),
)  # fmt: skip
Requests = Sequence[tuple[tuple[tuple[bytes, bytes], ...], bytes]]


def router_with(targeting: KeyPlace | None, *, is_split: bool) -> RequestRouter:
    """Return a router with both versions loaded, and a canary of 5 % if asked for."""
    router = RequestRouter(
        (FAMILY,), default_family=FAMILY, clients={(FAMILY, "cpu"): FakePredictClient()},
        limits=BatchLimits(100, 1 << 20, 100, 30.0),
    )  # fmt: skip
    router.observe(FAMILY, "cpu", [report("v1", "v2")])
    variants = (Variant(name="stable", version="v1", weight=9500), Variant(name="canary", version="v2", weight=500))
    splits = {FAMILY: Split(variants=variants, salt="benchmark", targeting=targeting)} if is_split else {}
    route = Route(version="v1", digest="0" * 64)
    router.follow(RoutingTable(generation=1, routes={FAMILY: route}, splits=splits))
    return router


def requests_with(place: KeyPlace | None, *, n_keys: int = N_KEYS) -> Requests:
    """Return requests with keys in that place, `n_keys` different ones."""
    different = [f"user-{random.getrandbits(48):012x}".encode() for _ in range(n_keys)]
    keys = [different[i % n_keys] for i in range(N_KEYS)]
    body = b'{"instances":[[5.1,3.5,1.4,0.2]]}'
    match place.source if place is not None else None:
        case KeySource.HEADER:
            return [((*HEADERS, (b"x-user", key)), body) for key in keys]
        case KeySource.COOKIE:
            return [((*HEADERS, (b"cookie", b"theme=dark; session=" + key)), body) for key in keys]
        case KeySource.FIELD:
            return [(HEADERS, b'{"entity":"%s","instances":[[5.1,3.5,1.4,0.2]]}' % key) for key in keys]
        case None:
            return [(HEADERS, body) for _ in keys]


def nanoseconds(run: Callable[[], None], *, rounds: int) -> tuple[float, float]:
    """Return the best and the median time of a decision over some rounds of all keys."""
    run()
    times = []
    for _ in range(rounds):
        started_ns = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started_ns) / N_KEYS)
    return min(times), statistics.median(times)


def without_split(requests: Requests) -> Callable[[], None]:
    """Choose as the hot route does where no family has a split."""
    router = router_with(None, is_split=False)

    def run() -> None:
        for _ in requests:
            if not router.splits:
                router.target(FAMILY)

    return run


def with_split(requests: Requests, place: KeyPlace | None) -> Callable[[], None]:
    """Choose as the hot route does where the family has one."""
    targeting = Targeting(router_with(place, is_split=True))

    def run() -> None:
        for headers, body in requests:
            targeting.place(FAMILY, None, headers, body, entity_of)

    return run


def measured(rounds: int) -> list[tuple[str, float, float]]:
    """Return where the targeting key stood, with the best and the median time of a decision in nanoseconds."""
    return asyncio.run(_measured(rounds))


async def _measured(rounds: int) -> list[tuple[str, float, float]]:
    times = [("no split", *nanoseconds(without_split(requests_with(None)), rounds=rounds))]
    header = KeyPlace(source=KeySource.HEADER, name="X-User")
    for name, place, n_keys in (
        ("no key", None, N_KEYS),
        ("in a header", header, N_KEYS),
        ("in a header, 100 keys", header, 100),
        ("in a cookie", KeyPlace(source=KeySource.COOKIE, name="session"), N_KEYS),
        ("in the body", KeyPlace(source=KeySource.FIELD, name="entity"), N_KEYS),
    ):
        run = with_split(requests_with(place, n_keys=n_keys), place)
        times.append((name, *nanoseconds(run, rounds=rounds)))
    return times


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    console = Console(highlight=False)
    for name, best, mid in measured(parser.parse_args().rounds):
        console.print(f"{name:26} {best:8.0f} ns best {mid:8.0f} ns median")


if __name__ == "__main__":
    main()
