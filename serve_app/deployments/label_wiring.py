"""What a gateway's labels are made of, by the configuration."""

from serve_app.adapters.label_metrics import LabelMetrics
from serve_app.adapters.prediction_log import PredictionFiles
from serve_app.adapters.prometheus_metrics import GatewayMetrics
from serve_app.config import AppConfig
from serve_app.ingress.feedback import FeedbackLimits
from serve_app.usecases.join_labels import JoinLabels
from serve_app.usecases.label_ports import PredictionLog
from serve_app.usecases.ports import Clock
from serve_app.usecases.remember_predictions import LabelSettings, PredictionMemory


class Labels:
    """Remembers predictions, and joins labels to them."""

    def __init__(self, memory: PredictionMemory, joiner: JoinLabels, limits: FeedbackLimits) -> None:
        self.memory = memory
        self.joiner = joiner
        self.limits = limits


def make_labels(config: AppConfig, metrics: GatewayMetrics, *, clock: Clock) -> Labels | None:
    """Put the labels together; None where no family takes any: then nothing is remembered at all."""
    settings = {name: family.labels for name, family in config.families.items() if family.labels is not None}
    if not settings:
        return None
    meter = LabelMetrics(metrics.registry)
    logs: dict[str, tuple[PredictionLog, LabelSettings]] = {
        family: (
            PredictionFiles(
                one.under(config.state_dir, family), keep_days=one.keep_days, max_bytes=one.max_bytes, now_s=clock.now_s
            ),
            LabelSettings(one.sample, one.remember, one.rules),
        )
        for family, one in settings.items()
    }
    memory = PredictionMemory(logs, meter, now_s=clock.now_s)
    limits = FeedbackLimits(config.limits.max_body_bytes, max(one.max_labels for one in settings.values()))
    return Labels(memory, JoinLabels(memory, meter, clock=clock), limits)
