from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from training.datasets import read_recording
from training.record_node import BUSY_WATTS_PER_CPU, IDLE_WATTS_PER_CPU, RaplMeter, main, modelled_watts


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(main)
    return app


class _Counters:
    """A tree of RAPL counters as the kernel shows it, and the time at which they are read."""

    def __init__(self, root: Path, n_packages: int, *, max_uj: int = 1_000_000_000) -> None:
        self.root = root
        self.now_s = 100.0
        for i in range(n_packages):
            self.set(i, 0)
            (self._zone(i) / "max_energy_range_uj").write_text(f"{max_uj}\n")

    def _zone(self, package: int) -> Path:
        return self.root / f"intel-rapl:{package}"

    def set(self, package: int, energy_uj: int) -> None:
        self._zone(package).mkdir(exist_ok=True)
        (self._zone(package) / "energy_uj").write_text(f"{energy_uj}\n")

    def meter(self) -> RaplMeter:
        return RaplMeter(self.root, monotonic_s=lambda: self.now_s)


def test_watts_are_the_joules_of_all_packages_over_the_time_that_passed(tmp_path: Path) -> None:
    counters = _Counters(tmp_path, n_packages=2)
    meter = counters.meter()
    assert meter.watts() is None
    counters.set(0, 30_000_000)
    counters.set(1, 10_000_000)
    counters.now_s += 2
    assert meter.watts() == pytest.approx(20.0)
    counters.now_s += 1
    assert meter.watts() == 0.0


def test_wrapped_counter_goes_on_from_its_range(tmp_path: Path) -> None:
    counters = _Counters(tmp_path, n_packages=1, max_uj=1_000_000_000)
    counters.set(0, 995_000_000)
    meter = counters.meter()
    meter.watts()
    counters.set(0, 3_000_000)
    counters.now_s += 1
    assert meter.watts() == pytest.approx(8.0)


def test_parts_of_a_package_are_not_counted_twice(tmp_path: Path) -> None:
    counters = _Counters(tmp_path, n_packages=11)
    part = tmp_path / "intel-rapl:0:0"
    part.mkdir()
    (part / "energy_uj").write_text("0")
    meter = counters.meter()
    meter.watts()
    for package in range(11):
        counters.set(package, 1_000_000)
    (part / "energy_uj").write_text("900000000")
    counters.now_s += 1
    assert meter.watts() == pytest.approx(11.0)


def test_no_time_passed_gives_no_watts(tmp_path: Path) -> None:
    meter = _Counters(tmp_path, n_packages=1).meter()
    meter.watts()
    assert meter.watts() is None


def test_machine_without_counters_gives_no_watts(tmp_path: Path) -> None:
    meter = RaplMeter(tmp_path / "absent")
    assert (meter.watts(), meter.watts()) == (None, None)


def test_counter_that_cannot_be_read_gives_no_watts_until_it_has_two_readings_again(tmp_path: Path) -> None:
    counters = _Counters(tmp_path, n_packages=1)
    meter = counters.meter()
    meter.watts()
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    counters.now_s += 1
    assert meter.watts() is None
    counters.set(0, 5_000_000)
    counters.now_s += 1
    assert meter.watts() is None
    counters.set(0, 6_000_000)
    counters.now_s += 1
    assert meter.watts() == pytest.approx(1.0)


@given(percent=st.floats(0, 100), more=st.floats(0, 100), n_cpus=st.integers(1, 256))
def test_modelled_watts_grow_with_load_between_idle_and_busy(percent: float, more: float, n_cpus: int) -> None:
    watts = modelled_watts(percent, n_cpus)
    assert n_cpus * IDLE_WATTS_PER_CPU <= watts <= n_cpus * BUSY_WATTS_PER_CPU * (1 + 1e-9)
    assert modelled_watts(min(percent + more, 100.0), n_cpus) >= watts * (1 - 1e-9)


@pytest.mark.parametrize(("percent", "watts"), [(0, 1.48), (50, 4.9085), (100, 7.0), (-5, 1.48), (105, 7.0)])
def test_modelled_watts_of_two_cpus(percent: float, watts: float) -> None:
    assert modelled_watts(percent, 2) == pytest.approx(watts, abs=1e-3)


def test_recorder_writes_a_file_that_training_reads(tmp_path: Path) -> None:
    out = tmp_path / "node.csv"
    result = CliRunner().invoke(_app(), ["--out", str(out), "--minutes", "0.01"])
    assert result.exit_code == 0, result.output
    assert read_recording(out).n_rows == 1


def test_recorder_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    out = tmp_path / "node.csv"
    out.write_text("kept")
    assert CliRunner().invoke(_app(), ["--out", str(out), "--minutes", "0.01"]).exit_code != 0
    assert out.read_text() == "kept"
