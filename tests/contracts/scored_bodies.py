"""Bodies for `/invocations`: every form, good and bad, made by a seeded generator that knows the columns."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.domain.signature import Column

JSON = "application/json"
CSV = "text/csv"
Rows = list[list[Any]]


@dataclass(frozen=True)
class Post:
    """One request."""

    body: bytes
    content_type: str | None = JSON


class Bodies:
    """Makes requests for a model with these columns; the same seed makes the same ones."""

    def __init__(self, columns: Sequence[Column], seed: int) -> None:
        self._columns = columns
        self._random = random.Random(seed)

    def make(self, n: int) -> list[Post]:
        """Make `n` requests."""
        makers: list[Callable[[], Post]] = [*[self._form] * 8, self._csv, self._csv, self._odd, self._broken]
        return [self._random.choice(makers)() for _ in range(n)]

    def _cells(self) -> tuple[list[str], Rows]:
        chance = self._random.random()
        columns = list(self._columns)
        if chance < 0.15:
            self._random.shuffle(columns)
        elif chance < 0.22 and len(columns) > 1:
            columns.pop()
        elif chance < 0.3:
            columns.append(Column(name="not asked for"))
        rows = [
            [self._cell(column.dtype) for column in columns]
            for _ in range(self._random.choice((1, 1, 1, 2, 2, 3, 3, 0)))
        ]
        if rows and self._random.random() < 0.05:
            rows[-1].pop()
        return [column.name for column in columns], rows

    def _cell(self, dtype: str) -> Any:
        if self._random.random() < 0.02:
            return self._random.choice(
                [None, True, "1", "1.5", "x", "", "nan", 1.5, 7.0, 1e10, 2**31, 2**63, 10**400, -0.0, float("nan"),
                 float("inf"), [1], {}, {"a": 1}, 1e39]
            )  # fmt: skip
        if dtype == "bool":
            return self._random.random() < 0.5
        if dtype.startswith("int") or self._random.random() < 0.2:
            return self._random.randint(-9, 9)
        return self._random.uniform(-3.0, 6.0)

    def _form(self) -> Post:
        names, rows = self._cells()
        records = [dict(zip(names, row, strict=False)) for row in rows]
        columns = {name: [row[i] for row in rows if i < len(row)] for i, name in enumerate(names)}
        key = self._random.choice(["instances", "inputs"])
        document: Any = self._random.choice(
            [
                {"dataframe_split": {"columns": names, "data": rows}},
                {"dataframe_split": {"columns": names, "data": rows, "index": list(range(len(rows)))}},
                {"dataframe_split": {"data": rows}},
                {"dataframe_split": {"columns": list(range(len(names))), "data": rows}},
                {"dataframe_records": records},
                {"dataframe_records": rows},
                {key: records},
                {key: rows},
                {key: columns},
                {key: [row[0] for row in rows if row]},
                {key: {name: values[0] if values else None for name, values in columns.items()}},
                {"inputs": records, "params": {"unknown": 1}},
            ]
        )
        return Post(json.dumps(document).encode())

    def _csv(self) -> Post:
        names, rows = self._cells()
        end = self._random.choice(["\n", "\n", "\r\n"])
        lines = [",".join(map(self._quoted, names)), *(",".join(map(self._text, row)) for row in rows)]
        text = end.join(lines) + self._random.choice([end, end, "", end + end])
        return Post(("\ufeff" * (self._random.random() < 0.05) + text).encode(), CSV)

    def _text(self, value: Any) -> str:
        if value is None:
            return self._random.choice(["", "NA", "NaN", "null"])
        if isinstance(value, str | list | dict):
            return self._quoted(str(value))
        return self._quoted(repr(value)) if self._random.random() < 0.1 else repr(value)

    def _quoted(self, text: str) -> str:
        return f'"{text}"' if "," in text or self._random.random() < 0.2 else text

    def _odd(self) -> Post:
        """A JSON document that is no form, or only nearly one."""
        names, rows = self._cells()
        records = [dict(zip(names, row, strict=False)) for row in rows]
        document: Any = self._random.choice(
            [
                [], [1], "x", 7, None, True, {}, {"a": 1}, {"instances": records, "inputs": records},
                {"instances": records, "dataframe_split": {"columns": names, "data": rows}},
                {"instances": None}, {"inputs": None}, {"inputs": {}}, {"inputs": []}, {"instances": "x"},
                {"inputs": [{}]}, {"instances": [*records, 1]}, {"instances": [[1], {"a": 1}]}, {"dataframe_split": []},
                {"dataframe_split": {}}, {"dataframe_split": {"columns": names}}, {"dataframe_split": {"data": 1}},
                {"dataframe_split": {"columns": names, "data": rows, "dtype": "float64"}},
                {"dataframe_split": {"columns": [*names, "one more"], "data": rows}},
                {"dataframe_split": {"columns": names, "data": rows, "index": [0] * 7}},
                {"dataframe_split": {"columns": 3, "data": rows}}, {"dataframe_records": {}},
                {"dataframe_records": None}, {"dataframe_records": [*records, 3]}, {"messages": [], "inputs": records},
                {"prompt": "x"}, {"input": records}, {"inputs": [[[1.0] * len(names)]]},
                {"inputs": [[1.0] * len(names), [1.0]]}, {"instances": {name: [[1]] for name in names}},
                {"instances": {name: list(range(i + 1)) for i, name in enumerate(names)}} if len(names) > 1 else {},
            ]
        )  # fmt: skip
        return Post(json.dumps(document).encode())

    def _broken(self) -> Post:
        """Bytes that are not what the content type says, or a content type that nobody reads."""
        good = self._form().body
        csv = self._csv().body
        return self._random.choice(
            [
                Post(b""), Post(b" "), Post(b"{"), Post(good[:-1]), Post(good + b"}"), Post(b"\xff\xfe\x00"),
                Post(good.replace(b"[", b"(", 1)), Post(csv), Post(b"[" * 50_000), Post(b"\xef\xbb\xbf" + good),
                Post(good.decode().encode("utf-16")), Post(good, CSV), Post(b"", CSV), Post(b"\n\n", CSV),
                Post(b"\xff\xfe", CSV), Post(csv + b'"', CSV), Post(csv.replace(b",", b";"), CSV),
                Post(csv.replace(b"\n", b"\n#"), CSV), Post(b"1,2,3,4\n5,6,7,8\n", CSV), Post(good, None),
                Post(good, ""),
                Post(good, "text/plain"), Post(good, "application/xml"), Post(good, "Application/JSON"),
                Post(good, "application/json;"), Post(good, "application/json; charset=latin-1"),
                Post(good, "application/json; charset=UTF-8"), Post(good, "application/json;charset=utf-8"),
                Post(good, 'application/json; charset="utf-8"'), Post(good, "application/json; odata=verbose"),
                Post(good, "application/json; format=pandas-split"), Post(csv, "text/csv; charset=utf-8"),
                Post(csv, "text/csv; header=present"), Post(good, "multipart/form-data"),
                Post(good, " application/json "),
            ]
        )  # fmt: skip
