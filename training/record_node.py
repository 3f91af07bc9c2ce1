"""Record the metrics of this node at 1 Hz into a CSV file.

    python -m training.record_node --minutes 50 --out node.csv

Every row is one second of a real machine, read with psutil. Power comes from the kernel's RAPL counters where it shows
them; elsewhere from the model in `modelled_watts`, and the column `power_source` says which of the two it was.
"""

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.progress import Progress

RAPL = Path("/sys/class/powercap")
IDLE_WATTS_PER_CPU = 0.74
BUSY_WATTS_PER_CPU = 3.5


def modelled_watts(cpu_percent: float, n_cpus: int) -> float:
    """Estimate the power that `n_cpus` virtual CPUs draw at `cpu_percent` (0 to 100) utilisation, in watts.

    P(u) = P_idle + (P_busy - P_idle) * (2u - u^1.4), the curve of X. Fan, W.-D. Weber and L. A. Barroso, "Power
    provisioning for a warehouse-sized computer", ISCA 2007. The end points per virtual CPU (0.74 W idle, 3.5 W busy)
    are the averages that the Cloud Carbon Footprint methodology takes for an AWS machine whose processor is unknown.
    """
    u = min(max(cpu_percent / 100.0, 0.0), 1.0)
    share: float = 2.0 * u - u**1.4
    return n_cpus * (IDLE_WATTS_PER_CPU + (BUSY_WATTS_PER_CPU - IDLE_WATTS_PER_CPU) * share)


class RaplMeter:
    """Watts of all CPU packages from the kernel's running energy counters (microjoules, wrapping at `max`)."""

    def __init__(self, root: Path = RAPL, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._zones = [z for z in sorted(root.glob("intel-rapl:[0-9]*")) if z.name.count(":") == 1]
        self._monotonic_s = monotonic_s
        self._last: tuple[float, list[int]] | None = None

    def watts(self) -> float | None:
        """Mean power since the last call; None at the first call and where the kernel shows no counters."""
        try:
            energies = [int((zone / "energy_uj").read_text()) for zone in self._zones]
            now_s = self._monotonic_s()
            last, self._last = self._last, (now_s, energies)
            if last is None or not energies or now_s <= last[0]:
                return None
            joules = 0.0
            for zone, before, after in zip(self._zones, last[1], energies, strict=True):
                wrap = int((zone / "max_energy_range_uj").read_text()) if after < before else 0
                joules += (after - before + wrap) / 1e6
        except (OSError, ValueError):  # counters that only root may read, or none
            self._last = None
            return None
        return joules / (now_s - last[0])


def samples(period_s: float = 1.0) -> Iterator[dict[str, float | str]]:
    """Yield one row per `period_s` for ever; rates are per second over the time that really passed."""
    meter = RaplMeter()
    meter.watts()
    psutil.cpu_percent(percpu=True)
    before = _counters()
    before_s = time.monotonic()
    due_s = before_s
    while True:
        due_s = max(due_s + period_s, time.monotonic() + period_s / 2)  # late: a row is left out, none comes twice
        time.sleep(due_s - time.monotonic())
        now_s = time.monotonic()
        after = _counters()
        yield _row(meter, before, after, now_s - before_s)
        before, before_s = after, now_s


def _counters() -> dict[str, float]:
    cpu, disk, net = psutil.cpu_stats(), psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        "context_switches_per_s": cpu.ctx_switches,
        "interrupts_per_s": cpu.interrupts,
        "disk_read_bytes_per_s": disk.read_bytes if disk else 0,
        "disk_write_bytes_per_s": disk.write_bytes if disk else 0,
        "net_sent_bytes_per_s": net.bytes_sent,
        "net_received_bytes_per_s": net.bytes_recv,
    }


def _row(meter: RaplMeter, before: dict[str, float], after: dict[str, float], span_s: float) -> dict[str, float | str]:
    cores = psutil.cpu_percent(percpu=True)
    total = sum(cores) / len(cores)
    memory, swap, load = psutil.virtual_memory(), psutil.swap_memory(), psutil.getloadavg()
    measured = meter.watts()
    watts = modelled_watts(total, len(cores)) if measured is None else measured
    return {
        "timestamp": f"{time.time():.2f}",
        "cpu_percent": round(total, 2),
        **{f"cpu_{i}_percent": round(percent, 1) for i, percent in enumerate(cores)},
        "load_1m": round(load[0], 2),
        "load_5m": round(load[1], 2),
        "load_15m": round(load[2], 2),
        "memory_percent": round(100.0 * (memory.total - memory.available) / memory.total, 3),
        "memory_used_bytes": memory.used,
        "memory_cached_bytes": getattr(memory, "cached", 0),
        "swap_percent": swap.percent,
        # a counter goes back when a disk or a network card goes away
        **{name: round(max(after[name] - before[name], 0) / span_s, 1) for name in after},
        "processes": len(psutil.pids()),
        "power_watts": round(watts, 3),
        "power_source": "model" if measured is None else "rapl",
    }


def main(
    out: Annotated[Path, typer.Option(help="The CSV file to write; it must not exist yet.")],
    minutes: Annotated[float, typer.Option(help="How long to record.")] = 50.0,
) -> None:
    """Record this node at 1 Hz. What was recorded when it is interrupted is kept."""
    n_rows = max(int(minutes * 60), 1)
    with out.open("x", newline="") as file, Progress() as progress:
        task = progress.add_task("recording", total=n_rows)
        writer: csv.DictWriter[str] | None = None
        for row, _ in zip(samples(), range(n_rows), strict=False):
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            progress.advance(task)


if __name__ == "__main__":
    typer.run(main)
