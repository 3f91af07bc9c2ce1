import pickle

import pytest

from serve_app.domain import errors

ALL: list[errors.ServeAppError] = [
    errors.ConfigError(["a: missing", "b: unknown key"]),
    errors.BundleError("models/v1", ["wrong digest"]),
    errors.ManifestError("models/v1", ["not JSON"]),
    errors.SourceError("the disk is gone"),
    errors.InvalidInputError("row 0: expected 2 values"),
    errors.UnknownFamilyError("forcaster", ["forecaster"]),
    errors.UnknownVersionError("forecaster", "v9", ["v1"]),
    errors.NoModelError("loading", retry_after_s=7),
    errors.PredictionError("ValueError: no"),
    errors.TrialError("hung", blames_bundle=False),
    errors.PinnedError("forecaster", "v1"),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_error_survives_the_way_to_another_process(error: errors.ServeAppError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize(
    ("name", "said"),
    [("forcaster", " (did you mean 'forecaster'?)"), ("zzz", ""), ("", ""), ("forecaster" * 100_000, "")],
    ids=["near", "far", "empty", "endless"],
)
def test_nearest_known_name_is_suggested(name: str, said: str) -> None:
    assert errors.nearest(name, ["forecaster", "iris"]) == said
