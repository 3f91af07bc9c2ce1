"""AppConfig and its parts: what an application is made of, read once from the `args` of a Serve config file.

Everything here is static: changing it restarts the application. What may change while it runs is in the `user_config`
of a deployment (`ReplicaUserConfig`). Every model is frozen and refuses keys that it does not know.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field, ValidationError, model_validator

from serve_app.config_events import EventsConfig, WebhookConfig
from serve_app.config_labels import LabelsConfig
from serve_app.config_limits import LimitsConfig
from serve_app.config_logging import LoggingConfig
from serve_app.config_part import Name
from serve_app.config_part import Part as _Part
from serve_app.config_pools import PoolConfig, ResidencyConfig
from serve_app.config_record import RecordConfig
from serve_app.config_retrain import RetrainConfig
from serve_app.config_rollout import RolledOut, plan_problems
from serve_app.config_shadow import ShadowConfig
from serve_app.config_sources import DirectoryConfig, RegistryConfig, SourceConfig
from serve_app.config_windows import WindowsConfig
from serve_app.domain.access import Scope, Token, TokenSet, scopes_of
from serve_app.domain.errors import ConfigError, nearest
from serve_app.domain.following import ReloadMode
from serve_app.domain.rollout_plan import RolloutPlan
from serve_app.domain.temporal import KeptWindows
from serve_app.domain.validation import problems_of

RELOAD_TOKEN_NAME = "reload-token"  # noqa: S105  # what the audit log shows for it
ADMIN_TOKEN_NAME = "admin-api-token"  # noqa: S105  # as above


class ReloadConfig(_Part):
    """How a family follows its source. A pin in `user_config` works in every mode."""

    mode: Annotated[
        ReloadMode, Field(description="none | poll | endpoint (S0: RELOAD_MODE); poll takes admin calls as well")
    ] = ReloadMode.POLL
    interval_s: Annotated[
        float, Field(gt=0, description="seconds between two looks at the source (S0: RELOAD_INTERVAL_SECONDS)")
    ] = 30.0


class TrialConfig(_Part):
    """What a version may use when it is loaded for the first time, in a process that may be killed."""

    timeout_s: Annotated[float, Field(gt=0, description="seconds; a bundle that takes longer is refused")] = 60.0
    memory_bytes: Annotated[
        int, Field(gt=0, description="bytes beyond an empty worker; 2 GiB is far above a scikit-learn model")
    ] = 2 << 30


class FamilyConfig(_Part):
    """Models with one signature and one purpose."""

    models_type: Annotated[str, Field(description="must equal the manifest's models_type (S0: MODELS_TYPE)")]
    loader: Annotated[str, Field(description="the loader for a manifest that names none")] = "sklearn_targets"
    source: SourceConfig
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(),)
    required: Annotated[bool, Field(description="whether /ready waits for this family")] = True
    windows: Annotated[
        WindowsConfig | None, Field(description="rolling windows of a temporal family; none: rows come with requests")
    ] = None
    retrain: Annotated[
        RetrainConfig | None, Field(description="train anew when enough was observed; none: somebody else does")
    ] = None
    labels: Annotated[LabelsConfig | None, Field(description="remember predictions for their labels; none: off")] = None
    record: Annotated[
        RecordConfig | None, Field(description="keep a sample of requests to run new versions on; none: off")
    ] = None
    shadow: ShadowConfig = ShadowConfig()
    reload: ReloadConfig = ReloadConfig()
    rollout: Annotated[RolloutPlan | None, Field(description="how new versions get traffic; none: all at once")] = None
    trial: TrialConfig = TrialConfig()
    residency: ResidencyConfig = ResidencyConfig()
    load_timeout_s: Annotated[
        float, Field(gt=0, description="deadline of one load, in seconds; 120 is ample for 1 GB")
    ] = 120.0

    @property
    def of_trials(self) -> dict[str, Any]:
        """What decides whether a bundle is refused, beside what the operator allows."""
        return self.model_dump(
            mode="json", include={"models_type", "loader", "windows", "trial", "residency", "load_timeout_s"}
        )

    @property
    def kept_windows(self) -> KeptWindows | None:
        """What models of a temporal family have to fit."""
        return None if self.windows is None else self.windows.kept

    @property
    def rolled_out(self) -> RolledOut:
        """What a plan of a rollout must agree with."""
        return RolledOut(
            pools=tuple(pool.name for pool in self.pools),
            policy=self.residency.policy,
            losses=None if self.labels is None else tuple(rule.name for rule in self.labels.rules),
            has_windows=self.windows is not None,
        )

    @model_validator(mode="after")
    def _pool_names_are_unique(self) -> "FamilyConfig":
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pool names must differ, found {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _plan_fits(self) -> "FamilyConfig":
        problems = plan_problems(self.rollout, self.rolled_out) if self.rollout is not None else ()
        if problems:
            raise ValueError("; ".join(f"rollout.{problem}" for problem in problems))
        return self

    @model_validator(mode="after")
    def _can_be_retrained(self) -> "FamilyConfig":
        if self.labels is not None and self.windows is not None:
            raise ValueError("labels: expected a family without windows; what forecasts predict is observed anyway")
        if self.record is not None and self.windows is not None:
            raise ValueError("record: expected a family without windows; its requests bring no rows")
        if self.retrain is not None:
            if self.windows is None:
                raise ValueError("retrain: expected windows, whose records are counted")
            if not self.retrain.command and (
                self.windows.archive is None or not isinstance(self.source, DirectoryConfig)
            ):
                raise ValueError("retrain: expected windows.archive and a source in a directory, or a command")
        return self


class MlflowModelsConfig(_Part):
    """What models of MLflow may be made of. Formats other than skops also need `mlflow` in `allow_pickle_loaders`."""

    formats: Annotated[
        tuple[Literal["skops", "pickle", "cloudpickle", "joblib", "pyfunc"], ...],
        Field(description="how models may be saved; skops alone runs no code of the model"),
    ] = ("skops",)
    trusted_types: Annotated[
        tuple[str, ...], Field(description="types that a skops file may hold beside scikit-learn's harmless ones")
    ] = ("sklearn.tree._tree.Tree",)
    environment_mismatch: Annotated[
        Literal["warn", "refuse", "ignore"],
        Field(description="what becomes of a model saved with other versions of Python, scikit-learn, numpy or torch"),
    ] = "warn"


class SecurityConfig(_Part):
    """What the operator allows. A bundle cannot widen it."""

    allow_pickle_loaders: Annotated[
        tuple[str, ...], Field(description="loaders that may run code from a bundle, e.g. sklearn_targets (joblib)")
    ] = ()
    mlflow: MlflowModelsConfig = MlflowModelsConfig()
    open_admin: Annotated[
        bool, Field(description="admin routes without a token: anybody may change models; closed unless asked for")
    ] = False
    closed_ingest: Annotated[
        bool,
        Field(
            description="observations and labels need a token with the scope ingest; "
            "open: whoever may predict may send them, and has a say in what rollouts decide by labels"
        ),
    ] = False
    token_file: Annotated[
        str, Field(min_length=1, description="admin tokens; relative: under state_dir, where `serve-app up` writes one")
    ] = "admin-token"  # noqa: S105  # a file's name
    token_header: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9-]{1,64}$", description="header of the token (S3: ADMIN_TOKEN_HEADER, its default)"),
    ] = "X-Admin-Token"  # noqa: S105  # a header's name
    reload_token_sha256: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{64}$", repr=False,
            description="sha256 of one more token, `reload-token`, with the scope reload (S0: RELOAD_TOKEN)",
        ),
    ] = None  # fmt: skip
    admin_token_sha256: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{64}$", repr=False,
            description="sha256 of one more token, `admin-api-token`, with every scope (S3: ADMIN_API_TOKEN)",
        ),
    ] = None  # fmt: skip
    webhook_secret_file: Annotated[
        str | None,
        Field(
            min_length=1,
            description="secret that MLflow signs its webhooks with; relative: under state_dir; none: no webhooks",
        ),
    ] = None  # fmt: skip
    client_address_header: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9-]{1,64}$",
            description="header in which a proxy of yours puts the client's address, e.g. X-Forwarded-For; default "
            "none, for without such a proxy clients write what they like",
        ),
    ] = None
    first_refusal_delay_s: Annotated[
        float, Field(ge=0, le=10, description="seconds a wrong token waits for its answer; doubles with each failure")
    ] = 0.25
    max_refusal_delay_s: Annotated[
        float,
        Field(ge=0, le=10, description="longest such wait, in seconds; 4 spoils guessing and holds few connections"),
    ] = 4.0


class AdminConfig(_Part):
    """The admin routes."""

    wait_s: Annotated[
        float, Field(gt=0, description="seconds a change is waited for where `timeout_s` is not given; then 202")
    ] = 120.0
    max_wait_s: Annotated[
        float, Field(gt=0, le=3600, description="largest `timeout_s`; HAProxy drops a connection after 3600 s")
    ] = 600.0

    @model_validator(mode="after")
    def _default_is_allowed(self) -> "AdminConfig":
        if self.wait_s > self.max_wait_s:
            raise ValueError(f"wait_s: expected at most max_wait_s ({self.max_wait_s}), found {self.wait_s}")
        return self


class GatewayConfig(_Part):
    """The HTTP ingress."""

    num_replicas: Annotated[int, Field(ge=1, description="replicas; 1, since on 2 cores one gave more than two")] = 1
    num_cpus: Annotated[float, Field(ge=0, description="CPUs that Ray reserves for a replica")] = 0.5
    pull_interval_s: Annotated[float, Field(gt=0, description="how often the replicas are asked what they hold")] = 1.0


class ReconcilerConfig(_Part):
    """The control plane."""

    num_cpus: Annotated[float, Field(ge=0, description="CPUs that Ray reserves; it idles nearly all the time")] = 0.1
    tick_s: Annotated[float, Field(gt=0, description="seconds between two looks at replicas and pins")] = 1.0
    store_url: Annotated[
        str | None,
        Field(repr=False, description="SQLAlchemy URL of the state store (STORE_URL); default: SQLite under state_dir"),
    ] = None
    cluster: Annotated[
        str,
        Field(
            description="name where clusters share a store, whose lease one holds to change things (RAY_CLUSTER_NAME)"
        ),
    ] = "default"


class AppConfig(_Part):
    """The whole application."""

    state_dir: Annotated[
        str, Field(description="directory of what this server writes; `serve-app` makes it absolute")
    ] = ".serve-app"
    default_family: Annotated[
        Name | None, Field(description="answers `/predict/`; default: the only or first family")
    ] = None
    allow_env_overrides: Annotated[
        bool, Field(description="let the environment change what config_env.py lists; off: the file is the whole truth")
    ] = False
    families: Annotated[dict[Name, FamilyConfig], Field(min_length=1)]
    gateway: GatewayConfig = GatewayConfig()
    reconciler: ReconcilerConfig = ReconcilerConfig()
    limits: LimitsConfig = LimitsConfig()
    security: SecurityConfig = SecurityConfig()
    admin: AdminConfig = AdminConfig()
    events: EventsConfig = EventsConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _default_family_exists(self) -> "AppConfig":
        name = self.default_family
        if name is not None and name not in self.families:
            raise ValueError(f"default_family: {name!r} is no family{nearest(name, self.families)}")
        return self

    @model_validator(mode="after")
    def _webhooks_name_families(self) -> "AppConfig":
        for webhook in self.events.webhooks:
            for name in webhook.families:
                if name not in self.families:
                    raise ValueError(f"events.webhooks: {name!r} is no family{nearest(name, self.families)}")
        return self

    @classmethod
    def parse(cls, document: Any) -> "AppConfig":
        """Read a document.

        Raises:
            ConfigError: With one sentence for every wrong key or value.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(problems_of(error, cls)) from error

    @property
    def default_family_name(self) -> str:
        """The family that answers where a route names none."""
        return self.default_family or next(iter(self.families))

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the state store."""
        return self.reconciler.store_url or f"sqlite:///{Path(self.state_dir, 'state.db')}"

    def last_known(self, name: str) -> Path:
        """File on this node that keeps the last answer of the control plane, for a start without it."""
        return Path(self.state_dir, "last-known", f"{name}.json")

    @property
    def webhook_secret(self) -> bytes | None:
        """Secret of MLflow's webhooks, read from its file now; None where none is configured.

        Raises:
            ConfigError: The file cannot be read, or is empty.
        """
        if self.security.webhook_secret_file is None:
            return None
        path = Path(self.state_dir, self.security.webhook_secret_file)
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError([f"security.webhook_secret_file: {path}: {error.strerror}"]) from error
        if not secret:
            raise ConfigError([f"security.webhook_secret_file: expected a secret in {path}, found an empty file"])
        return secret

    @property
    def event_source(self) -> str:
        """The `source` of CloudEvents."""
        return self.events.source or f"/serve-app/{quote(self.reconciler.cluster, safe='')}"

    @property
    def webhooks(self) -> tuple[WebhookConfig, ...]:
        """Who is told of events; paths lie under the state directory unless they are absolute."""
        return tuple(webhook.under(self.state_dir) for webhook in self.events.webhooks)

    @property
    def token_file(self) -> Path:
        """File of the admin tokens."""
        return Path(self.state_dir, self.security.token_file)

    @property
    def fixed_tokens(self) -> TokenSet:
        """Admin tokens that hold beside those in the file."""
        security = self.security
        given = (
            (RELOAD_TOKEN_NAME, scopes_of(Scope.RELOAD), security.reload_token_sha256),
            (ADMIN_TOKEN_NAME, scopes_of(*Scope), security.admin_token_sha256),
        )
        return TokenSet(tuple(Token(name, scopes, bytes.fromhex(digest)) for name, scopes, digest in given if digest))

    @property
    def families_by_registered_model(self) -> dict[str, list[str]]:
        """Which families follow a registered model, by its name."""
        found: dict[str, list[str]] = {}
        for name, family in self.families.items():
            if isinstance(family.source, RegistryConfig):
                found.setdefault(family.source.model, []).append(name)
        return found

    def tried_under(self, family: str, libraries: Mapping[str, str]) -> str:
        """Return what tells the settings and libraries that bundles of a family are tried under from any others."""
        security = self.security.model_dump(mode="json", include={"allow_pickle_loaders", "mlflow"})
        settings = {"family": self.families[family].of_trials, "security": security, "libraries": dict(libraries)}
        return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()

    def source(self, family: str) -> SourceConfig:
        """Where a family's bundles come from; paths lie under the state directory unless they are absolute."""
        source = self.families[family].source
        if isinstance(source, DirectoryConfig):
            return source.model_copy(update={"root": str(Path(self.state_dir, source.root))})
        cache_dir = Path(self.state_dir, source.cache_dir or f"mlflow/{family}")
        return source.model_copy(update={"cache_dir": str(cache_dir)})

    def windows(self, family: str) -> WindowsConfig | None:
        """What is kept for a temporal family; its directories lie under the state directory or are absolute."""
        windows = self.families[family].windows
        return None if windows is None else windows.under(self.state_dir, family)

    @property
    def temporal_families(self) -> tuple[str, ...]:
        """Names of the families that have windows."""
        return tuple(name for name, family in self.families.items() if family.windows is not None)


class ReplicaUserConfig(_Part):
    """The `user_config` of a model deployment: the wish that `reconfigure` records."""

    manifest_version: Annotated[str, Field(description="a version to pin, or 'current' to follow the source")] = (
        "current"
    )

    @classmethod
    def parse(cls, document: Any) -> "ReplicaUserConfig":
        """Read a document; None gives the defaults.

        Raises:
            ConfigError: With one sentence for every wrong key or value.
        """
        try:
            return cls.model_validate({} if document is None else document)
        except ValidationError as error:
            raise ConfigError(problems_of(error, cls)) from error
