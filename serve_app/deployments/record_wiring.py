"""What a gateway mirrors and records with, and what the Reconciler replays with, by the configuration."""

from collections.abc import Callable, Mapping

from serve_app.adapters.prometheus_metrics import GatewayMetrics
from serve_app.adapters.record_metrics import RecordMetrics
from serve_app.adapters.replay_process import ProcessReplayer, ReplaySettings
from serve_app.adapters.request_files import RequestFiles
from serve_app.adapters.shadow_metrics import ShadowMetrics
from serve_app.adapters.trial import TrialSettings
from serve_app.config import AppConfig
from serve_app.usecases.compare_answers import Comparison
from serve_app.usecases.mirror_requests import Mirror, MirrorLimits
from serve_app.usecases.ports import Clock, TrialLimits
from serve_app.usecases.record_requests import RecordSettings, RequestRecorder
from serve_app.usecases.replay_ports import RequestLog


def make_mirror(config: AppConfig, metrics: GatewayMetrics) -> Mirror:
    """Put together what sends copies."""
    limits = {
        name: MirrorLimits(
            shadow.at_once,
            shadow.timeout_s,
            shadow.max_lag_s,
            shadow.rtol,
            shadow.atol,
            shadow.keeps_inputs,
            shadow.busy_share,
        )
        for name, family in config.families.items()
        for shadow in (family.shadow,)
    }
    return Mirror(by_family=limits, meter=ShadowMetrics(metrics.registry))


def make_recorder(config: AppConfig, metrics: GatewayMetrics, *, clock: Clock) -> RequestRecorder | None:
    """Put together what records requests; None where no family does."""
    logs: dict[str, tuple[RequestLog, RecordSettings]] = {
        name: (
            RequestFiles(
                record.under(config.state_dir, name), max_requests=record.max_requests, max_bytes=record.max_bytes,
                now_s=clock.now_s,
            ),
            RecordSettings(record.sample / 100, record.redact),
        )
        for name, family in config.families.items()
        if (record := family.record) is not None
    }  # fmt: skip
    return RequestRecorder(logs, RecordMetrics(metrics.registry), now_s=clock.now_s) if logs else None


def make_replayer(config: AppConfig, trial_settings: Callable[[AppConfig, str], TrialSettings]) -> ProcessReplayer:
    """Put together what runs versions on recorded requests."""
    settings: Mapping[str, ReplaySettings] = {
        name: ReplaySettings(
            trial_settings(config, name),
            TrialLimits(family.trial.timeout_s, family.trial.memory_bytes),
            record.under(config.state_dir, name),
            record.max_bytes,
            record.replay_s,
            Comparison(family.shadow.rtol, family.shadow.atol, family.shadow.keeps_inputs),
        )
        for name, family in config.families.items()
        if (record := family.record) is not None
    }
    return ProcessReplayer(settings)
