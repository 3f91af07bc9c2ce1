"""Windows and records as bytes, the same wherever they are kept."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.domain.windows import Record, WindowRules
from serve_app.usecases.keep_windows import TableImage, WindowTable


def records_as_json(records: Sequence[Record]) -> bytes:
    """Return `[[entity, time, {metric: value}], …]`."""
    return orjson.dumps([[record.entity, record.at_s, dict(record.values)] for record in records])


def records_of_json(content: bytes, rules: WindowRules) -> Iterator[Record]:
    """Read records, without metrics that the rules no longer have.

    Raises:
        ValueError: It is something else.
    """
    names = set(rules.names)
    for entity, at_s, values in orjson.loads(content):
        known = values if values.keys() <= names else {name: values[name] for name in values if name in names}
        if known:
            yield Record(entity, at_s, known)


def image_as_bytes(image: TableImage, rules: WindowRules) -> bytes:
    """Return an image as safetensors; the rules it was made by are in its header."""
    facts = {"entities": json.dumps(image.entities), "metrics": json.dumps(rules.names), "step_s": str(rules.step_s)}
    arrays: dict[str, NDArray[Any]] = {"values": image.values, "times": image.times, "newest_step": image.newest_step}
    return save(arrays, metadata=facts)


def table_of_bytes(content: bytes, rules: WindowRules) -> WindowTable:
    """Return a table that holds what an image of the same rules holds.

    Raises:
        ValueError: It was made by other rules, or is no image.
    """
    try:
        arrays = load(content)
        facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found = json.loads(facts["metrics"]), int(facts["step_s"])
        image = TableImage(
            entities=tuple(json.loads(facts["entities"])),
            values=np.asarray(arrays["values"], np.float32),
            times=np.asarray(arrays["times"], np.float64),
            newest_step=np.asarray(arrays["newest_step"], np.int64),
        )
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"expected an image of windows: {error}") from error
    if found != (list(rules.names), rules.step_s):
        raise ValueError(
            f"expected the metrics {', '.join(rules.names)} in steps of {rules.step_s} s, "
            f"found {', '.join(found[0])} in steps of {found[1]} s"
        )
    return WindowTable.of_image(image, rules)
