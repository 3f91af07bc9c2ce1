import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.adapters.loaders import LOADERS
from serve_app.adapters.sources.local_directory import LocalDirectorySource
from serve_app.domain.errors import BundleError, GoldenMismatchError, SourceError
from serve_app.domain.manifest import Golden
from serve_app.domain.model_slot import SlotState
from serve_app.domain.signature import Column, Signature
from serve_app.domain.temporal import KeptWindows, TemporalShape
from serve_app.usecases.load_model import INLINE_LIMIT_S, LoadedModel, LoadPolicy, load_model
from serve_app.usecases.ports import Bundle, BundleSource, Loader
from tests import builders
from tests.fakes.bundle_source import FakeBundleSource
from tests.fakes.clock import FakeClock
from tests.fakes.loader import FakeLoader, FakePredictor
from tests.fakes.predict_client import row_sums

SIGNATURE = builders.signature(["a", "b"], ["y"])
FITTING = KeptWindows(metrics=("cpu", "ram"), step_s=60, length=2)


class OnePredictor(FakeLoader):
    """A loader that always gives the same predictor."""

    def __init__(self, predictor: FakePredictor) -> None:
        super().__init__()
        self._predictor = predictor

    def load(self, bundle: Bundle) -> FakePredictor:
        super().load(bundle)
        return self._predictor


def plain_bundle(version: str = "v1", **facts: Any) -> Bundle:
    files = {"model.bin": b"12345"}
    if samples := facts.pop("samples", None):
        files["golden.json"] = json.dumps(samples).encode()
        facts["golden"] = Golden(rtol=0.0, atol=0.0)
    return builders.bundle(files, model_version=version, signature=SIGNATURE, **facts)


def load(
    source: BundleSource | Bundle,
    version: str = "current",
    *,
    loader: Loader | None = None,
    allowed: tuple[str, ...] = (),
    windows: KeptWindows | None = None,
    **options: Any,
) -> LoadedModel:
    return load_model(
        FakeBundleSource(source) if isinstance(source, Bundle) else source,
        version,
        policy=LoadPolicy("forecaster", "regression", "fake", allowed, windows=windows),
        loaders={"fake": loader or FakeLoader(), "pickling": FakeLoader(uses_pickle=True)},
        clock=FakeClock(),
        **options,
    )


def refusal(bundle: Bundle, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        load(bundle, **options)
    return str(caught.value)


def test_loaded_version_answers_and_tells_its_facts() -> None:
    model = load(plain_bundle(metrics={"mae": 1.5}, training={"rows": 7}))
    assert model.predictor.predict(np.array([[1.0, 2.0]])).tolist() == [[8.0]]
    facts = model.facts
    assert (facts.version, facts.digest, facts.created_at) == (
        "v1",
        plain_bundle(metrics={"mae": 1.5}, training={"rows": 7}).digest,
        "2026-01-30T09:00:00Z",
    )
    assert (facts.signature, facts.engine, facts.artifact_bytes) == (SIGNATURE, {"y": "fake"}, 5)
    assert (facts.metrics, facts.training) == ({"mae": 1.5}, {"rows": 7})
    assert facts.loaded_at_s == FakeClock().now_s()


def test_current_is_what_the_source_calls_current() -> None:
    source = FakeBundleSource(plain_bundle("v1"), plain_bundle("v2"))
    source.set_current("v1")
    assert load(source).facts.version == "v1"
    assert load(source, "v2").facts.version == "v2"


def test_stages_are_told_in_order() -> None:
    seen: list[SlotState] = []
    load(plain_bundle(), on_stage=seen.append)
    assert seen == [
        SlotState.FETCHING, SlotState.VERIFYING, SlotState.LOADING, SlotState.WARMING_UP, SlotState.CHECKING,
    ]  # fmt: skip


def test_model_is_warmed_up_on_its_golden_inputs() -> None:
    seen: list[NDArray[np.float64]] = []

    def answer(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        seen.append(rows)
        return row_sums(rows)

    load(
        plain_bundle(samples={"inputs": [[1, 2], [3, 4], [5, 6]], "outputs": [[3], [7], [11]]}),
        loader=OnePredictor(FakePredictor(SIGNATURE, answer=answer)),
    )
    assert seen[0].shape == (64, 2)
    assert {tuple(row) for row in seen[0].tolist()} == {(1, 2), (3, 4), (5, 6)}


def test_quick_model_runs_inline() -> None:
    assert load(plain_bundle()).facts.runs_inline


def test_slow_model_runs_in_a_thread() -> None:
    def slow(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        end_s = time.perf_counter() + INLINE_LIMIT_S
        while time.perf_counter() < end_s:
            pass
        return row_sums(rows)

    facts = load(plain_bundle(), loader=OnePredictor(FakePredictor(SIGNATURE, answer=slow))).facts
    assert not facts.runs_inline
    assert facts.row_micros >= INLINE_LIMIT_S / 64 * 1e6


def test_another_digest_than_the_one_asked_for_is_refused_before_loading() -> None:
    loader = FakeLoader()
    assert f"expected a manifest with sha256 {'f' * 64}, found one with" in refusal(
        plain_bundle(), loader=loader, digest="f" * 64
    )
    assert loader.loaded == []


def test_loader_that_reads_pickle_is_refused_unless_the_operator_allows_it() -> None:
    wants_pickle = plain_bundle(loader="pickling")
    assert "found 'pickling', which reads pickle" in refusal(wants_pickle)
    assert load(wants_pickle, allowed=("pickling",)).facts.version == "v1"


def test_wrong_models_type_family_and_loader_are_told_at_once_and_nothing_is_loaded() -> None:
    loader = FakeLoader()
    said = refusal(plain_bundle(models_type="classification", family="iris", loader="fakee"), loader=loader)
    assert "models_type: expected 'regression', found 'classification'" in said
    assert "family: expected 'forecaster', found 'iris'" in said
    assert "loader: expected one of fake, pickling, found 'fakee' (did you mean 'fake'?)" in said
    assert loader.loaded == []


def test_model_that_does_not_reproduce_its_golden_outputs_is_refused() -> None:
    with pytest.raises(GoldenMismatchError, match="expected 99 within 0"):
        load(plain_bundle(samples={"inputs": [[1, 2]], "outputs": [[99]]}))


@pytest.mark.parametrize("shape", [(64,), (64, 2), (63, 1), (64, 1, 1)], ids=str)
def test_outputs_that_do_not_fit_the_signature_are_refused(shape: tuple[int, ...]) -> None:
    misshapen = FakePredictor(SIGNATURE, answer=lambda rows: np.zeros(shape))
    said = refusal(plain_bundle(), loader=OnePredictor(misshapen))
    assert f"expected outputs of shape (64, 1), as the signature says, found {shape}" in said


def test_source_that_cannot_be_read_is_told_as_such() -> None:
    source = FakeBundleSource()
    source.error = SourceError("the disk is gone")
    with pytest.raises(SourceError, match="the disk is gone"):
        load(source)


def test_loader_that_raises_is_passed_on() -> None:
    loader = FakeLoader()
    loader.error = BundleError("memory", ["no model in it"])
    assert "no model in it" in refusal(plain_bundle(), loader=loader)


POLICY = LoadPolicy("forecaster", "regression", "sklearn_targets", ("sklearn_targets",))


def test_real_bundle_on_disk_is_loaded_and_gives_its_golden_outputs(tmp_path: Path) -> None:
    builders.write_forecaster(tmp_path, "v1")
    source = LocalDirectorySource(tmp_path)
    model = load_model(source, "current", policy=POLICY, loaders=LOADERS, clock=FakeClock())
    golden = json.loads(builders.forecaster_files()["golden.json"])
    assert np.allclose(model.predictor.predict(np.array(golden["inputs"])), golden["outputs"], rtol=1e-12)
    assert model.facts.signature == builders.signature()


def test_real_bundle_is_refused_while_pickle_is_not_allowed(tmp_path: Path) -> None:
    builders.write_forecaster(tmp_path, "v1")
    strict = LoadPolicy("forecaster", "regression", "sklearn_targets", ())
    with pytest.raises(BundleError, match="which reads pickle"):
        load_model(LocalDirectorySource(tmp_path), "v1", policy=strict, loaders=LOADERS, clock=FakeClock())


class TemporalFake(FakePredictor):
    """A predictor of windows of two steps."""

    temporal = TemporalShape(
        mode="fake", metrics=("cpu",), units=("percent",), max_encoder_length=2, max_prediction_length=3, step_s=60,
        quantiles=(0.5,), n_entities=1,
    )  # fmt: skip
    entities = ("web-01",)


def test_model_of_windows_is_warmed_up_with_whole_rows_and_tells_its_shape() -> None:
    signature = Signature(
        inputs=(Column(name="server_key", dtype="int64"), Column(name="window", shape=(2, 1))),
        outputs=(Column(name="forecast", shape=(3, 1, 1)),),
    )
    widths: list[int] = []

    def forecasts(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        widths.append(rows.shape[1])
        return np.zeros((len(rows), 3))

    facts = load(plain_bundle(), loader=OnePredictor(TemporalFake(signature, answer=forecasts))).facts
    assert facts.temporal == TemporalFake.temporal
    assert set(widths) == {3}
    narrow = OnePredictor(TemporalFake(signature, answer=lambda rows: np.zeros((len(rows), 1))))
    assert r"expected outputs of shape (64, 3)" in refusal(plain_bundle(), loader=narrow)


def test_other_models_have_no_temporal_shape() -> None:
    assert load(plain_bundle()).facts.temporal is None


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        (KeptWindows(metrics=("ram",), step_s=60, length=9), "takes cpu, which the windows do not keep (ram)"),
        (KeptWindows(metrics=("cpu",), step_s=300, length=9), "takes steps of 60 s, the windows have steps of 300 s"),
        (KeptWindows(metrics=("cpu",), step_s=60, length=1), "the model takes 2 steps, the windows keep 1"),
    ],
)
def test_model_that_does_not_fit_the_windows_of_its_family_is_refused(kept: KeptWindows, problem: str) -> None:
    signature = Signature(
        inputs=(Column(name="server_key", dtype="int64"), Column(name="window", shape=(2, 1))),
        outputs=(Column(name="forecast", shape=(3, 1, 1)),),
    )
    model = TemporalFake(signature, answer=lambda rows: np.zeros((len(rows), 3)))
    assert problem in refusal(plain_bundle(), loader=OnePredictor(model), windows=kept)
    assert load(plain_bundle(), loader=OnePredictor(model), windows=FITTING).facts.temporal is not None


def test_model_of_rows_is_none_for_a_family_that_keeps_windows() -> None:
    assert "expected a model of windows" in refusal(plain_bundle(), windows=FITTING)
