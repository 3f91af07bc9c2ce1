"""Load one version: fetch, verify, check against the operator's rules, deserialize, warm up, try the golden samples."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from serve_app.domain.errors import BundleError
from serve_app.domain.manifest import check_manifest
from serve_app.domain.model_slot import SlotState
from serve_app.domain.status import LoadedVersion
from serve_app.domain.temporal import KeptWindows
from serve_app.usecases.check_golden import check_golden, golden_samples
from serve_app.usecases.ports import Bundle, BundleSource, Clock, DeviceMemory, Loader, Predictor, TemporalPredictor

INLINE_LIMIT_S = 0.002
"""A 64-row batch faster than this is predicted on the event loop; a thread would cost more than it saves."""
_WARM_UP_ROWS = 64
_WARM_UP_RUNS = 3


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """What the operator asks of a bundle: family and `models_type`, the loader if it names none, pickle permission.

    `golden_slack` is for a device that computes less exactly than golden samples expect, see `check_golden`. `windows`
    are those of a temporal family, which its models must fit.
    """

    family: str
    models_type: str
    default_loader: str
    allowed_pickle_loaders: tuple[str, ...]
    golden_slack: float = 0.0
    windows: KeptWindows | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LoadedModel:
    """A version ready to answer, and what is known of it."""

    predictor: Predictor
    facts: LoadedVersion


def load_model(
    source: BundleSource,
    version: str,
    *,
    policy: LoadPolicy,
    loaders: Mapping[str, Loader],
    clock: Clock,
    digest: str | None = None,
    on_stage: Callable[[SlotState], None] = lambda _: None,
    make_room: Callable[[int], None] = lambda _: None,
    memory: DeviceMemory | None = None,
) -> LoadedModel:
    """Load `version` (or `"current"`) completely, or raise and leave nothing behind.

    `digest` is the sha256 (hex) that the manifest must have; None takes any. `on_stage` hears of each stage as it
    begins, in this thread, and `make_room` of the bytes of all files before they are loaded; what they raise ends the
    load. `memory` measures what load and warm-up take of a device.

    Raises:
        BundleError: The bundle is refused, with all its problems.
        GoldenMismatchError: The model does not reproduce its stored outputs.
        SourceError: The source cannot be read now.
    """
    started_s = clock.monotonic_s()
    bundle, loader = _fetch(source, version, policy=policy, loaders=loaders, digest=digest, on_stage=on_stage)
    manifest = bundle.manifest
    make_room(sum(map(len, bundle.files.values())))
    on_stage(SlotState.LOADING)
    if memory is not None:
        memory.begin()
    predictor = loader.load(bundle)
    if problems := _misfits(predictor, policy.windows):
        raise BundleError(bundle.location, problems)
    on_stage(SlotState.WARMING_UP)
    batch_s = _warm_up(predictor, bundle)
    device_bytes, device_peak_bytes = (0, 0) if memory is None else memory.used()
    on_stage(SlotState.CHECKING)
    check_golden(predictor, bundle, slack=policy.golden_slack)
    return LoadedModel(
        predictor,
        LoadedVersion(
            version=manifest.model_version,
            digest=bundle.digest,
            created_at=manifest.created_at.isoformat().replace("+00:00", "Z"),
            loaded_at_s=clock.now_s(),
            load_seconds=clock.monotonic_s() - started_s,
            artifact_bytes=predictor.artifact_bytes,
            signature=predictor.signature,
            engine=dict(predictor.engine),
            row_micros=batch_s / _WARM_UP_ROWS * 1e6,
            runs_inline=batch_s < INLINE_LIMIT_S,
            metrics=dict(manifest.metrics or {}),
            training=dict(manifest.training or {}),
            temporal=predictor.temporal if isinstance(predictor, TemporalPredictor) else None,
            device_bytes=device_bytes,
            device_peak_bytes=device_peak_bytes,
        ),
    )


def _fetch(
    source: BundleSource,
    version: str,
    *,
    policy: LoadPolicy,
    loaders: Mapping[str, Loader],
    digest: str | None,
    on_stage: Callable[[SlotState], None],
) -> tuple[Bundle, Loader]:
    """Fetch and verify a version, and return it with its loader.

    The source checks the files' digests while it fetches, on the bytes that it keeps, so verifying is what is left: the
    digest of the whole and the operator's rules.
    """
    on_stage(SlotState.FETCHING)
    bundle = source.fetch(version)
    on_stage(SlotState.VERIFYING)
    if digest is not None and bundle.digest != digest:
        raise wrong_digest(bundle.location, expected=digest, found=bundle.digest)
    problems = check_manifest(
        bundle.manifest,
        models_type=policy.models_type,
        family=policy.family,
        loaders={known: loader.uses_pickle for known, loader in loaders.items()},
        default_loader=policy.default_loader,
        allowed_pickle_loaders=policy.allowed_pickle_loaders,
    )
    if problems:
        raise BundleError(bundle.location, problems)
    return bundle, loaders[bundle.manifest.loader or policy.default_loader]


def wrong_digest(where: str, *, expected: str, found: str) -> BundleError:
    """Return the error for a bundle that is not the one asked for, though its version is."""
    return BundleError(
        where, [f"expected a manifest with sha256 {expected}, found one with {found}; a version never changes"]
    )


def _misfits(predictor: Predictor, windows: KeptWindows | None) -> list[str]:
    """Return why a model does not fit the windows of its family; nothing for one without windows."""
    if windows is None:
        return []
    if not isinstance(predictor, TemporalPredictor):
        return ["expected a model of windows, as the family keeps them, found one of plain rows"]
    return windows.problems_with(predictor.temporal)


def _warm_up(predictor: Predictor, bundle: Bundle) -> float:
    """Predict a few times, the golden inputs where there are some, and return the seconds of the fastest batch."""
    golden = golden_samples(bundle)
    n_inputs = predictor.signature.input_width
    rows = np.zeros((1, n_inputs)) if golden is None else golden.inputs
    batch = np.resize(rows, (_WARM_UP_ROWS, n_inputs))
    times_s = []
    for _ in range(_WARM_UP_RUNS):
        started_s = time.perf_counter()
        outputs = predictor.predict(batch)
        times_s.append(time.perf_counter() - started_s)
        expected = (_WARM_UP_ROWS, predictor.signature.output_width)
        if outputs.shape != expected:
            problem = f"expected outputs of shape {expected}, as the signature says, found {outputs.shape}"
            raise BundleError(bundle.location, [problem])
    return min(times_s)
