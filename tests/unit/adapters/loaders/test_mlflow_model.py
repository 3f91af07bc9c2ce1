import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # pandas ships no types
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serve_app.adapters.loaders import loaders_with
from serve_app.adapters.loaders.mlflow_model import MlflowLoader, MlflowPredictor
from serve_app.adapters.loaders.mlflow_settings import MlflowLoaderSettings
from serve_app.domain.errors import BundleError, PredictionError
from serve_app.usecases.ports import Bundle
from tests.builders import INPUTS
from tests.unit.adapters.loaders.mlflow_models import (
    CLASSES,
    FRAME,
    NUMBERS,
    changed,
    loaded_by_mlflow,
    saved,
    saved_function,
)

ALL = MlflowLoaderSettings(formats=("skops", "pickle", "cloudpickle", "pyfunc"), environment_mismatch="refuse")
X = FRAME.to_numpy()


def load(bundle: Bundle, settings: MlflowLoaderSettings = ALL) -> MlflowPredictor:
    return MlflowLoader(settings).load(bundle)


def refusal(bundle: Bundle, settings: MlflowLoaderSettings = ALL) -> str:
    with pytest.raises(BundleError) as caught:
        load(bundle, settings)
    return "\n".join(caught.value.problems)


def by_mlflow(bundle: Bundle, directory: Path, data: Any) -> Any:
    assert (directory / "model" / "MLmodel").read_bytes() == bundle.files["model/MLmodel"]
    return loaded_by_mlflow(directory).predict(data)


def forest(**options: Any) -> RandomForestClassifier:
    return RandomForestClassifier(5, random_state=0, **options).fit(FRAME, CLASSES)


def sums(model_input):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # MLflow makes a schema of annotations
    assert list(model_input.columns) == list(INPUTS)
    return pd.DataFrame({"sum": model_input.sum(axis=1), "is_large": model_input.sum(axis=1) > 1.0})


SUMS_OF_FRAME: Any = sums(FRAME)  # type: ignore[no-untyped-call]  # for the same reason


def fickle(model_input):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # as above
    """Answer a single row in another form than several."""
    return model_input.to_numpy()[:, 0] if len(model_input) > 1 else model_input


@pytest.mark.parametrize("format_", ["skops", "pickle", "cloudpickle"])
def test_forest_of_every_format_answers_as_mlflow_does_through_treelite(tmp_path: Path, format_: str) -> None:
    model = forest()
    signature = (FRAME, model.predict(FRAME))
    bundle = saved(tmp_path, model, signature=signature, example=FRAME[:3], serialization_format=format_)
    predictor = load(bundle)
    assert predictor.engine == {"predictions": "treelite"}
    found = predictor.predict(X)
    assert found.dtype == np.int64
    assert np.array_equal(found[:, 0], by_mlflow(bundle, tmp_path, FRAME))
    signature_found = predictor.signature
    assert signature_found.input_names == INPUTS
    assert (signature_found.input_layout, signature_found.output_layout) == ("named", "values")
    assert predictor.artifact_bytes == sum(map(len, bundle.files.values()))


def test_native_model_is_loaded_without_mlflow(tmp_path: Path) -> None:
    saved(tmp_path, forest(), signature=(FRAME, CLASSES), serialization_format="skops")
    code = """if True:
        import sys
        from pathlib import Path
        from serve_app.adapters.loaders import loaders_with, MlflowLoaderSettings
        from tests import builders
        root = Path(sys.argv[1])
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        loaded = loaders_with(MlflowLoaderSettings())["mlflow"].load(builders.bundle(files, loader="mlflow"))
        print(dict(loaded.engine), [name for name in ("mlflow", "torch") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "{'predictions': 'treelite'} []\n"


def test_probabilities_of_a_forest_have_its_bits_and_the_names_of_its_classes(tmp_path: Path) -> None:
    model = RandomForestClassifier(5, random_state=0).fit(X, CLASSES)
    bundle = saved(tmp_path, model, signature=(X, model.predict_proba(X)), pyfunc_predict_fn="predict_proba")
    predictor = load(bundle)
    assert predictor.signature.output_names == ("probability_0", "probability_1", "probability_2")
    assert predictor.engine["probability_0"] == "treelite"
    for rows in (X, X[:1]):
        assert np.array_equal(predictor.predict(rows), by_mlflow(bundle, tmp_path, rows))
    assert (predictor.signature.input_layout, predictor.signature.output_layout) == ("tensor", "rows")
    assert predictor.signature.input_names == ("feature_0", "feature_1", "feature_2")


def test_types_of_the_signature_reach_a_linear_model_as_in_mlflow(tmp_path: Path) -> None:
    narrow = FRAME.astype(np.float32)
    model = LogisticRegression().fit(narrow, CLASSES)
    bundle = saved(tmp_path, model, signature=(narrow, model.predict_proba(narrow)), pyfunc_predict_fn="predict_proba")
    found = load(bundle).predict(narrow.to_numpy().astype(np.float64))
    assert np.array_equal(found, by_mlflow(bundle, tmp_path, narrow))


def test_mixed_columns_and_a_pipeline_that_chooses_by_name(tmp_path: Path) -> None:
    mixed = FRAME.assign(ram=(FRAME["ram"] * 10).astype(np.int64), load=FRAME["load"] > 0)
    model = make_pipeline(ColumnTransformer([("s", StandardScaler(), ["ram", "cpu"])]), LinearRegression())
    model.fit(mixed, NUMBERS)
    bundle = saved(tmp_path, model, signature=(mixed, model.predict(mixed)))
    predictor = load(bundle)
    assert [column.dtype for column in predictor.signature.inputs] == ["float64", "int64", "bool"]
    assert predictor.engine == {"predictions": "scikit-learn: no tree ensemble"}
    assert np.array_equal(predictor.predict(mixed.astype(float).to_numpy())[:, 0], by_mlflow(bundle, tmp_path, mixed))


def test_labels_that_are_text_and_several_outputs(tmp_path: Path) -> None:
    texts = np.array(["low", "mid", "high"])[CLASSES]
    labelled = load(saved(tmp_path / "a", forest().fit(FRAME, texts), signature=(FRAME, texts)))
    assert labelled.signature.outputs[0].dtype == "string"
    assert labelled.predict(X[:4])[:, 0].tolist() == forest().fit(FRAME, texts).predict(FRAME[:4]).tolist()
    both = np.stack([NUMBERS, -NUMBERS], axis=1)
    model = RandomForestRegressor(3, random_state=0).fit(FRAME, both)
    named = pd.DataFrame(both, columns=["up", "down"])
    pair = load(saved(tmp_path / "b", model, signature=(FRAME, named)))
    assert pair.signature.output_names == ("up", "down")
    assert np.array_equal(pair.predict(X), model.predict(FRAME))


def test_nan_goes_where_scikit_learn_sends_it_and_is_refused_where_it_refuses(tmp_path: Path) -> None:
    rows = X.copy()
    rows[::3, 1] = np.nan
    model = forest()
    predictor = load(saved(tmp_path / "a", model, signature=(FRAME, CLASSES)))
    assert np.array_equal(predictor.predict(rows)[:, 0], model.predict(pd.DataFrame(rows, columns=list(INPUTS))))
    boosted = GradientBoostingClassifier(n_estimators=3).fit(FRAME, CLASSES)
    strict = load(saved(tmp_path / "b", boosted, signature=(FRAME, CLASSES)))
    assert strict.engine == {"predictions": "treelite"}
    with pytest.raises(PredictionError, match="row 0, field 'ram': expected a number that the model can take, got nan"):
        strict.predict(rows)
    for each in (predictor, strict):
        with pytest.raises(PredictionError, match=r"row 1, field 'load'.*got 1e\+300"):
            each.predict(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1e300]]))


def test_function_gets_the_frame_of_its_signature_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = saved_function(tmp_path / "saved", sums, signature=(FRAME, SUMS_OF_FRAME))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    predictor = load(bundle)
    assert list(scratch.iterdir()) == []
    assert predictor.engine["sum"] == "pyfunc: mlflow.pyfunc.model"
    assert [(column.name, column.dtype) for column in predictor.signature.outputs] == [
        ("sum", "float64"), ("is_large", "bool"),
    ]  # fmt: skip
    assert predictor.signature.output_layout == "records"
    (total, is_large) = predictor.predict(X[:1])[0].tolist()
    assert (total, is_large) == (pytest.approx(X[0].sum()), bool(X[0].sum() > 1.0))


def test_function_that_changes_the_form_of_its_answer_is_a_failed_prediction(tmp_path: Path) -> None:
    predictor = load(saved_function(tmp_path, fickle, signature=(FRAME, NUMBERS), example=FRAME[:4]))
    assert predictor.predict(X[:2])[:, 0].tolist() == X[:2, 0].tolist()
    with pytest.raises(PredictionError, match="expected values of no names as at the first prediction, found records"):
        predictor.predict(X[:1])


def test_model_without_a_signature_is_asked_for_its_columns(tmp_path: Path) -> None:
    named = load(saved(tmp_path / "a", forest()))
    assert (named.signature.input_names, named.signature.input_layout) == (INPUTS, "exact")
    plain = load(saved(tmp_path / "b", RandomForestClassifier(2).fit(X, CLASSES)))
    assert (plain.signature.input_names[0], plain.signature.input_layout) == ("feature_0", "free")
    assert "expected a signature in MLmodel" in refusal(saved_function(tmp_path / "c", sums))


def test_columns_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    texts = pd.DataFrame({"name": ["a", "b"], "cpu": [1.0, 2.0]})
    bundle = saved_function(tmp_path, sums, signature=(texts, np.zeros(2)))
    assert refusal(bundle) == "signature.inputs: only numbers and booleans are served, found 'string' for 'name'"


def test_signature_that_is_not_the_estimators_is_refused(tmp_path: Path) -> None:
    swapped = saved(tmp_path / "a", forest(), signature=(FRAME[["ram", "cpu", "load"]], CLASSES))
    assert "signature.inputs: expected the columns that the estimator was fitted on, in their order" in refusal(swapped)
    wider = saved(tmp_path / "b", RandomForestClassifier(2).fit(X, CLASSES), signature=(np.zeros((2, 4)), CLASSES))
    assert "signature.inputs: expected 3 as the estimator, found 4" in refusal(wider)


def test_only_what_the_operator_allows_is_loaded_whatever_the_model_says(tmp_path: Path) -> None:
    pickled = saved(tmp_path / "a", forest(), signature=(FRAME, CLASSES))
    strict = MlflowLoaderSettings()
    assert refusal(pickled, strict) == (
        "expected a format that the configuration allows for models of MLflow (skops), found 'cloudpickle'"
    )
    # A pickle that calls itself skops is no zip file, and is never unpickled.
    lying = changed(pickled, "model/MLmodel", "serialization_format: cloudpickle", "serialization_format: skops")
    assert "found one that fails" in refusal(lying, strict)
    function = saved_function(tmp_path / "b", sums, signature=(FRAME, NUMBERS))
    assert "found 'pyfunc'" in refusal(function, strict)
    trees = saved(tmp_path / "c", forest(), signature=(FRAME, CLASSES), serialization_format="skops")
    assert b"sklearn.tree._tree.Tree" in trees.files["model/MLmodel"]
    assert "expected only types that skops or the configuration trusts, found sklearn.tree._tree.Tree" in refusal(
        trees, MlflowLoaderSettings(trusted_types=())
    )
    other = changed(trees, "model/MLmodel", "predict_fn: predict", "predict_fn: fit")
    assert "expected one of the predict_fn predict, predict_proba" in refusal(other)


def test_skops_alone_needs_no_permission_for_pickle() -> None:
    assert not loaders_with(MlflowLoaderSettings())["mlflow"].uses_pickle
    assert loaders_with(ALL)["mlflow"].uses_pickle


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("pickled_model: model.pkl", "pickled_model: other.pkl", "expected the estimator in model/other.pkl"),
        (
            "serialization_format: cloudpickle",
            "serialization_format: dill",
            "expected one of the formats skops, pickle",
        ),
        ("flavors:", "flavours:", "flavors: missing"),
        ("flavors:", "flavors: [", "expected YAML, found"),
    ],
)
def test_broken_mlmodel_is_refused_with_what_is_wrong(tmp_path: Path, old: str, new: str, problem: str) -> None:
    bundle = changed(saved(tmp_path, forest(), signature=(FRAME, CLASSES)), "model/MLmodel", old, new)
    assert problem in refusal(bundle)


def test_other_environment_warns_or_refuses_as_the_operator_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = saved(tmp_path, forest(), signature=(FRAME, CLASSES))
    bundle = changed(bundle, "model/MLmodel", "sklearn_version: ", "sklearn_version: 0.24.1 #")
    assert "scikit-learn: the model was saved with 0.24.1, found" in refusal(bundle)
    formats = ALL.formats
    load(bundle, MlflowLoaderSettings(formats=formats, environment_mismatch="warn"))
    assert "saved in another environment" in capsys.readouterr().out
    load(bundle, MlflowLoaderSettings(formats=formats, environment_mismatch="ignore"))
    assert capsys.readouterr().out == ""
