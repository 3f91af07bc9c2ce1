"""Small versions of the temporal family for tests: trained by the training's own code, in a second or so."""

from collections.abc import Sequence
from pathlib import Path

import torch

from serve_app.adapters.bundle_writer import set_current
from training.fit_tft import Plan, Split, fit
from training.fleet_data import Fleet
from training.fleet_simulator import METRICS, simulate
from training.train_tft import configured, golden_document, publish, training_facts

SERVERS = 6
NAMES = tuple(metric.name for metric in METRICS)


def small_fleet(*, seed: int = 0, metrics: Sequence[str] = NAMES, servers: int = SERVERS) -> Fleet:
    """Return a day of a simulated fleet (`web-01`, `db-01`, …), with these of its metrics."""
    fleet = simulate(servers=servers, days=1, seed=seed)
    columns = [NAMES.index(name) for name in metrics]
    kept = tuple(METRICS[column] for column in columns)
    return Fleet(fleet.servers, kept, fleet.step_s, fleet.start_s, fleet.values[:, :, columns], fleet.facts)


def write_tft_bundle(
    root: Path,
    version: str,
    *,
    seed: int = 0,
    encoder: int = 24,
    horizon: int = 8,
    metrics: Sequence[str] = NAMES,
    servers: int = SERVERS,
    current: bool = True,
) -> Path:
    """Publish a version under `root` and return its directory; the same arguments give the same weights.

    It knows all servers of `small_fleet`, and took one step of training: enough to be different for each seed.
    """
    fleet = small_fleet(seed=seed, metrics=metrics, servers=servers)
    plan = Plan(epochs=1, batches=1, seed=seed)
    config = configured(fleet, encoder_length=encoder, prediction_length=horizon, hidden_size=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them round otherwise
    try:
        fitted = fit(fleet, config, plan)
        golden = golden_document(fitted, fleet, Split.of(fleet.n_steps, config).held_out)
    finally:
        torch.set_num_threads(threads)
    path = publish(
        fitted,
        root,
        version=version,
        make_current=False,
        golden=golden,
        metrics={},
        training=training_facts(fitted, fleet, fleet, plan),
    )
    if current:
        set_current(root, version)
    return path
