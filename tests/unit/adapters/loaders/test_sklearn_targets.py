import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # pandas ships no types
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serve_app.adapters.loaders import LOADERS
from serve_app.adapters.loaders.sklearn_targets import SCALER_X, SklearnTargetsPredictor
from serve_app.domain.errors import BundleError, GoldenMismatchError, InvalidInputError, PredictionError
from serve_app.domain.manifest import Golden
from serve_app.usecases.check_golden import check_golden
from serve_app.usecases.ports import Bundle
from tests import builders
from tests.builders import INPUTS, TARGETS, joblib_bytes, rows

X = rows()
NUMBERS = X @ np.arange(1.0, 4.0)
CLASSES = np.digitize(NUMBERS, np.quantile(NUMBERS, [0.3, 0.7]))


class CountingJobs:
    """A model that answers with the number of threads it would use."""

    n_jobs = -1
    n_features_in_ = 3

    def predict(self, asked: Any) -> Any:
        return np.full(len(asked), float(self.n_jobs))


def load(bundle: Bundle) -> SklearnTargetsPredictor:
    loaded = LOADERS["sklearn_targets"].load(bundle)
    assert isinstance(loaded, SklearnTargetsPredictor)
    return loaded


def bundle_of(facts: dict[str, Any] | None = None, /, **models: Any) -> Bundle:
    files = {f"models/{name}/regression/model.joblib": joblib_bytes(model) for name, model in models.items()}
    return builders.bundle(files, **facts or {})


def refusal(bundle: Bundle) -> str:
    with pytest.raises(BundleError) as caught:
        load(bundle)
    return "\n".join(caught.value.problems)


def forest(**options: Any) -> RandomForestRegressor:
    return RandomForestRegressor(3, random_state=0, **options).fit(X, NUMBERS)


class Unloadable:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Raising:
    """A model that loads and then fails."""

    def predict(self, asked: Any) -> Any:
        raise RuntimeError("out of ideas")


def test_forecaster_bundle_reproduces_its_golden_samples_bit_for_bit() -> None:
    bundle = builders.forecaster_bundle()
    predictor = load(bundle)
    check_golden(predictor, bundle)
    assert predictor.engine == dict.fromkeys(TARGETS, "treelite")
    assert predictor.predict(X[:2]).dtype == np.float64
    assert predictor.artifact_bytes == sum(map(len, bundle.files.values()))


def test_changed_golden_outputs_are_a_mismatch() -> None:
    files = dict(builders.forecaster_files())
    golden = json.loads(files["golden.json"])
    golden["outputs"][2][1] += 1e-6
    files["golden.json"] = json.dumps(golden).encode()
    bundle = builders.bundle(files, signature=builders.signature(), golden=Golden())
    with pytest.raises(GoldenMismatchError, match="sample 2, output 'power_usage_node'"):
        check_golden(load(bundle), bundle)


def test_plain_s0_bundle_names_its_columns_after_the_scaler() -> None:
    files = {path: content for path, content in builders.forecaster_files().items() if path != "golden.json"}
    assert load(builders.bundle(files)).signature.input_names == ("feature_0", "feature_1", "feature_2")
    named = StandardScaler().fit(pd.DataFrame(X, columns=list(INPUTS)))
    predictor = load(builders.bundle(files | {SCALER_X: joblib_bytes(named)}))
    assert predictor.signature.input_names == INPUTS
    assert predictor.signature.output_names == TARGETS
    assert np.array_equal(predictor.predict(X), load(builders.bundle(files)).predict(X))


def test_outputs_come_in_the_order_of_the_signature() -> None:
    forward = load(builders.forecaster_bundle()).predict(X[:5])
    backward = builders.bundle(builders.forecaster_files(), signature=builders.signature(outputs=TARGETS[::-1]))
    assert np.array_equal(load(backward).predict(X[:5]), forward[:, ::-1])


def test_model_without_scalers_is_served_as_it_is() -> None:
    model = LinearRegression().fit(X, NUMBERS)
    predictor = load(bundle_of(y=model))
    assert np.array_equal(predictor.predict(X)[:, 0], model.predict(X))
    assert predictor.engine == {"y": "scikit-learn: no tree ensemble"}


def test_forest_that_treelite_cannot_stand_in_for_is_left_to_scikit_learn() -> None:
    model = GradientBoostingRegressor(init=LinearRegression(), n_estimators=3).fit(X, NUMBERS)
    predictor = load(bundle_of(y=model))
    assert predictor.engine["y"].startswith("scikit-learn: treelite cannot take it")
    assert np.array_equal(predictor.predict(X)[:, 0], model.predict(X))


@pytest.mark.parametrize(
    "model", [RandomForestClassifier(3, random_state=0), LogisticRegression()], ids=["forest", "linear"]
)
def test_whole_number_labels_are_int64(model: Any) -> None:
    model.fit(X / 20, CLASSES)
    predicted = load(bundle_of(y=model)).predict(X / 20)
    assert predicted.dtype == np.int64
    assert predicted[:, 0].tolist() == model.predict(X / 20).tolist()


def test_text_labels_are_text_even_beside_numbers() -> None:
    labelled = RandomForestClassifier(3, random_state=0).fit(X, np.array(["cold", "warm", "hot"])[CLASSES])
    predictor = load(bundle_of(a=labelled, b=forest()))
    assert predictor.predict(X[:1]).tolist() == [[labelled.predict(X[:1])[0], forest().predict(X[:1])[0]]]
    assert [column.dtype for column in predictor.signature.outputs] == ["string", "float64"]


def test_models_fitted_on_data_frames_do_not_warn() -> None:
    frame = pd.DataFrame(X, columns=list(INPUTS))
    model = RandomForestRegressor(3, random_state=0).fit(frame, NUMBERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = load(bundle_of(y=model, z=LinearRegression().fit(frame, NUMBERS)))
        assert np.array_equal(predictor.predict(X)[:, 0], model.predict(frame))
    assert predictor.signature.input_names == INPUTS
    assert predictor.engine["y"] == "treelite"


def test_pipeline_that_chooses_columns_by_name_gets_them() -> None:
    frame = pd.DataFrame(X, columns=list(INPUTS))
    chosen = ColumnTransformer([("scaled", StandardScaler(), ["ram", "cpu"])])
    model = make_pipeline(chosen, LinearRegression()).fit(frame, NUMBERS)
    assert np.array_equal(load(bundle_of(y=model)).predict(X)[:, 0], model.predict(frame))


def test_model_fitted_with_many_jobs_predicts_with_one() -> None:
    assert load(bundle_of(y=CountingJobs())).predict(X[:2]).tolist() == [[1.0], [1.0]]


def test_several_threads_may_predict_at_once() -> None:
    predictor = load(builders.forecaster_bundle())
    batches = [rows(n, seed=n) for n in range(1, 81)]
    expected = [predictor.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor.predict, batches * 3))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 3, strict=True))


def test_empty_batch_has_no_answers() -> None:
    assert load(builders.forecaster_bundle()).predict(np.empty((0, 3))).shape == (0, 3)


def test_answer_does_not_depend_on_the_batch() -> None:
    predictor = load(builders.forecaster_bundle())
    together = predictor.predict(X)
    assert np.array_equal(np.concatenate([predictor.predict(X[i : i + 1]) for i in range(len(X))]), together)


@pytest.mark.parametrize("n_rows", [2, 100])
def test_value_beyond_float32_names_row_and_field(n_rows: int) -> None:
    asked = X[:n_rows].copy()
    asked[1, 2] = -1e300
    with pytest.raises(
        InvalidInputError, match=r"row 1, field 'load': .* within the range of float32 .*, got -1e\+300"
    ):
        load(builders.forecaster_bundle()).predict(asked)


def test_model_that_raises_names_the_output() -> None:
    bundle = bundle_of({"signature": builders.signature(outputs=["y"])}, y=Raising())
    with pytest.raises(PredictionError, match="output 'y': RuntimeError: out of ideas"):
        load(bundle).predict(X)


def test_bundle_without_models_of_its_type_is_refused() -> None:
    bundle = bundle_of({"models_type": "classification"}, y=forest())
    assert "expected files like models/<target>/classification/model.joblib, found none" in refusal(bundle)


def test_files_that_do_not_load_are_refused_all_at_once() -> None:
    files = {
        "models/a/regression/model.joblib": b"not joblib",
        "models/b/regression/model.joblib": joblib_bytes(Unloadable()),
        "models/c/regression/model.joblib": joblib_bytes({"a": "dict"}),
        SCALER_X: joblib_bytes(forest()),
        "scalers/scaler_y/a.joblib": joblib_bytes(forest()),
    }
    said = refusal(builders.bundle(files))
    assert "models/a/regression/model.joblib: expected a joblib file, found one that fails" in said
    assert "models/b/regression/model.joblib: expected a joblib file, found one that fails: ValueError" in said
    assert "models/c/regression/model.joblib: expected an object with predict(), found a dict" in said
    assert "features.joblib: expected an object with transform(), found a RandomForestRegressor" in said
    assert "scaler_y/a.joblib: expected an object with inverse_transform(), found a RandomForestRegressor" in said


def test_file_of_another_layout_is_never_unpickled() -> None:
    files = {**builders.forecaster_files(), "notes/extra.joblib": joblib_bytes(Unloadable())}
    load(builders.bundle(files))


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (builders.signature(outputs=["z"]), "signature.outputs: expected the targets y, found z"),
        (
            builders.signature(inputs=["cpu"], outputs=["y"]),
            "model 'y': expected 1 inputs as in the signature, found 3",
        ),
    ],
)
def test_signature_that_does_not_fit_the_models_is_refused(signature: Any, said: str) -> None:
    assert said in refusal(bundle_of({"signature": signature}, y=forest()))


def test_signature_in_another_order_than_the_scaler_was_fitted_on_is_refused() -> None:
    scaler = StandardScaler().fit(pd.DataFrame(X, columns=list(INPUTS)))
    files = {"models/y/regression/model.joblib": joblib_bytes(forest()), SCALER_X: joblib_bytes(scaler)}
    said = refusal(builders.bundle(files, signature=builders.signature(inputs=["ram", "cpu", "load"], outputs=["y"])))
    assert "columns that scaler_x was fitted on, in their order (cpu, ram, load), found ram, cpu, load" in said


def test_model_with_several_outputs_is_refused() -> None:
    several = RandomForestRegressor(2).fit(X, X[:, :2])
    assert "model 'y': expected one output, found 2" in refusal(bundle_of(y=several))


def test_models_that_know_nothing_of_their_columns_need_a_signature() -> None:
    assert "expected a signature in the manifest" in refusal(bundle_of(y=Raising()))
