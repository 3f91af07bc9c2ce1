"""All that controls one family, put together."""

from dataclasses import dataclass

from serve_app.usecases.control_rollouts import RolledFamily
from serve_app.usecases.demand_versions import VersionDemands
from serve_app.usecases.follow_source import SourceFollower
from serve_app.usecases.ports import BundleSource
from serve_app.usecases.reload_model import ModelReloader
from serve_app.usecases.retrain_model import ModelRetrainer


@dataclass(frozen=True, slots=True)
class ControlledFamily:
    """One family under control: where its bundles come from, who follows them, and who carries changes out.

    `demands` loads what requests name; None: nothing is loaded by name. `retrainer` trains it; None: others do.
    `rolled` carries its rollouts on; None: it has none, every change is at once. `tried_under` tells the settings that
    candidates are tried under from others; what was refused under others may be tried again.
    """

    source: BundleSource
    follower: SourceFollower
    reloader: ModelReloader
    demands: VersionDemands | None = None
    retrainer: ModelRetrainer | None = None
    rolled: RolledFamily | None = None
    tried_under: str = ""
