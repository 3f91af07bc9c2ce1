"""The rules for manifests are written twice, in Python and in awk. Both are held to the same table."""

import json
import random
import unicodedata
from typing import Any, Final

import pytest

from serve_app.domain.errors import ManifestError
from serve_app.domain.manifest import Manifest
from tests.kuberay.sidecar.bundles import document
from tests.kuberay.sidecar.shells import Shell

DIGEST: Final = "0" * 64
COLUMN: Final = {"name": "a"}
ZERO: Final = {"a": DIGEST}


def raw(**changes: Any) -> bytes:
    return json.dumps(document(**changes)).encode()


def spliced(text: bytes) -> bytes:
    """Return a good manifest with some bytes before its closing brace."""
    return raw()[:-1] + text + b"}"


def signature(**changes: Any) -> bytes:
    return raw(signature={"inputs": [COLUMN], "outputs": [COLUMN]} | changes)


def nested(depth: int) -> bytes:
    return spliced(b',"metrics":{"a":' + b"[" * depth + b"]" * depth + b"}")


GOOD: Final = {
    "four_keys": raw(),
    "everything": raw(
        sidecar={"poll_interval_seconds": 0.5},
        format_version=1,
        family="forecaster",
        loader="sklearn_targets",
        signature={
            "inputs": [{"name": "", "dtype": "float32", "unit": "°C", "description": None, "shape": [3, 2]}],
            "outputs": [COLUMN, {"name": "b", "unit": None, "shape": []}],
            "input_layout": "named",
            "output_layout": None,
        },
        sha256={"golden.json": DIGEST},
        golden={"rtol": 0, "atol": 1e-6},
        environment={"python": "3.11", "": ""},
        metrics={"a": [None, True, {"b": -0.0}, "\u0000\ud83d\ude00\\/"]},
        training={},
        parent_version="iris%20b:3",
    ),
    "nulls": raw(sidecar=None, family=None, loader=None, signature=None, golden=None, environment=None, metrics=None),
    "default_interval": raw(sidecar={}),
    "golden_elsewhere": raw(sha256=ZERO, golden={"path": "a"}),
    "upper_case_digest": raw(sha256={"a": "AB" * 32}),
    "odd_paths": raw(sha256=dict.fromkeys(("a b", "-rf", "quote\"'", "ümlaut/模型", "*", "~", "a%b", "#"), DIGEST)),
    "long_part": raw(sha256={"a" * 255 + "/" + "b" * 255: DIGEST}),
    "date_alone": raw(created_at="2026-01-30"),
    "no_seconds": raw(created_at="2026-01-30 09:00"),
    "offset": raw(created_at="2024-02-29T23:59:59.123456-11:30"),
    "spaces": b" \n\t" + raw().replace(b",", b" ,\r\n") + b"\n\n",
    "escapes_in_keys": raw().replace(b"models_type", b"models\\u005ftype"),
    "numbers": spliced(b',"metrics":{"a":[0,-0,1E+2,0.5e-1,123456789012345678901234567890]}'),
    "long_version": raw(model_version="v" * 128),
    "deep": nested(30),
}

BAD: Final = {
    "empty": b"",
    "no_json": b"hello",
    "no_object": b"[]",
    "string": b'"v1"',
    "cut_short": raw()[:-1],
    "two_documents": raw() + b"{}",
    "byte_order_mark": b"\xef\xbb\xbf" + raw(),
    "nul_after_the_end": raw() + b"\0",
    "latin_1": raw(models_type="X").replace(b"X", b"\xfc"),
    "overlong_utf8": raw(models_type="X").replace(b"X", b"\xc0\xaf"),
    "surrogate_in_utf8": raw(models_type="X").replace(b"X", b"\xed\xa0\x80"),
    "half_a_surrogate_pair": spliced(b',"metrics":{"a":"\\ud800"}'),
    "control_character": spliced(b',"metrics":{"a":"\n"}'),
    "bad_escape": spliced(b',"metrics":{"a":"\\x41"}'),
    "comma_at_the_end": spliced(b","),
    "single_quotes": raw().replace(b'"', b"'"),
    "leading_zero": spliced(b',"metrics":{"a":01}'),
    "bare_point": spliced(b',"metrics":{"a":1.}'),
    "plus": spliced(b',"metrics":{"a":+1}'),
    "nan": spliced(b',"metrics":{"a":NaN}'),
    "infinity": spliced(b',"metrics":{"a":-Infinity}'),
    "beyond_float64": spliced(b',"metrics":{"a":1e999}'),
    "number_too_long": spliced(b',"metrics":{"a":' + b"1" * 4301 + b"}"),
    "too_deep": nested(31),
    "far_too_deep": nested(100_000),
    "key_twice": spliced(b',"models_type":"regression"'),
    "key_twice_in_depth": spliced(b',"metrics":{"a":{"b":1,"b":1}}'),
    "key_twice_by_escape": spliced(b',"models\\u005ftype":"regression"'),
    "unknown_key": raw(version="v1"),
    **{f"no_{key}": raw(**{key: ...}) for key in ("model_version", "models_type", "created_at", "sha256")},
    **{f"null_{key}": raw(**{key: None}) for key in ("model_version", "models_type", "created_at", "sha256")},
    **{f"number_{key}": raw(**{key: 1}) for key in ("model_version", "models_type", "created_at", "sha256")},
    **{
        f"version_{i}": raw(model_version=version)
        for i, version in enumerate(("", "..", "a/b", ".hidden", "a b", "a\n", "v" * 129, "current", "Staging", "é"))
    },
    **{f"type_{i}": raw(models_type=name) for i, name in enumerate(("", ".", "..", "a/b", "a\\b", "a\tb", "x" * 256))},
    **{
        f"path_{i}": raw(sha256={path: DIGEST})
        for i, path in enumerate(
            ("", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb", "a\u200bb", "a\u00a0b", "x" * 256,
             "a/" * 600)
        )
    },
    **{
        f"digest_{i}": raw(sha256={"a": digest})
        for i, digest in enumerate(("", "0" * 63, "0" * 65, "g" * 64, " " + "0" * 63, None, 0, "０" * 64))
    },
    "file_and_directory": raw(sha256={"a/b": DIGEST, "a": DIGEST}),
    "no_files": raw(sha256={}),
    "list_of_files": raw(sha256=["a"]),
    **{
        f"moment_{i}": raw(created_at=moment)
        for i, moment in enumerate(
            ("", "now", "2026-02-29", "2026-13-01", "2026-01-30T24:00:00", "2026-01-30T09:60", "2026-01-30T09:00:60Z",
             "2026-01-30T09:00Zulu", "2026-01-30T09:00:00+24:00", "2026-01-30T09:00+0", "2026-01-30T")
        )
    },
    **{
        f"interval_{i}": raw(sidecar={"poll_interval_seconds": seconds})
        for i, seconds in enumerate((0, -1, "5", None, True, 10**400))
    },
    "interval_unknown_key": raw(sidecar={"poll": 1}),
    **{f"format_{i}": raw(format_version=number) for i, number in enumerate((0, 2, 1.0, "1", None, True))},
    "family_with_a_slash": raw(family="a/b"),
    "empty_loader": raw(loader=""),
    "no_inputs": signature(inputs=[]),
    "no_outputs": raw(signature={"inputs": [COLUMN]}),
    "column_without_name": signature(inputs=[{"dtype": "bool"}]),
    "column_twice": signature(outputs=[COLUMN, COLUMN]),
    "column_of_unknown_type": signature(inputs=[COLUMN | {"dtype": "float16"}]),
    "column_of_no_type": signature(inputs=[COLUMN | {"dtype": None}]),
    "column_with_unknown_key": signature(inputs=[COLUMN | {"min": 0}]),
    "unit_of_a_number": signature(inputs=[COLUMN | {"unit": 1}]),
    "shape_of_nothing": signature(inputs=[COLUMN | {"shape": None}]),
    "shape_of_zero": signature(inputs=[COLUMN | {"shape": [0]}]),
    "shape_of_halves": signature(inputs=[COLUMN | {"shape": [1.0]}]),
    "unknown_layout": signature(input_layout="rows"),
    "signature_with_unknown_key": signature(columns=[]),
    "golden_unlisted": raw(golden={}),
    "golden_of_no_path": raw(sha256=ZERO, golden={"path": None}),
    "negative_tolerance": raw(sha256=ZERO, golden={"path": "a", "rtol": -1e-9}),
    "environment_of_numbers": raw(environment={"python": 3}),
    "metrics_as_list": raw(metrics=[]),
    "training_as_text": raw(training="well"),
    **{
        f"parent_{i}": raw(parent_version=name)
        for i, name in enumerate(("", "a b:3", "iris:", ":3", "a%2Db:3", "a%2f:3"))
    },
}  # fmt: skip

STRICTER: Final = {
    "version_of_another_model": raw(model_version="iris:3"),
    "combining_mark": raw(sha256={"u\u0308": DIGEST}),
    "emoji": raw(sha256={"\N{SNAKE}": DIGEST}),
    "name_of_the_marker": raw(sha256={"READY": DIGEST}),
    "name_of_refused_bundles": raw(sha256={"rejected-1/model": DIGEST}),
    "manifest_in_its_own_list": raw(sha256={"manifest.json": DIGEST}),
    "basic_date": raw(created_at="20260130T090000"),
    "year_one": raw(created_at="0001-01-01T09:00:00Z"),
}


def accepts(manifest: bytes) -> bool:
    try:
        Manifest.parse(manifest, "here")
    except ManifestError:
        return False
    return True


@pytest.mark.parametrize("name", GOOD)
def test_both_accept(shell: Shell, name: str) -> None:
    assert accepts(GOOD[name])
    is_good, text = shell.judge(GOOD[name])
    assert is_good, text


@pytest.mark.parametrize("name", BAD)
def test_both_refuse(shell: Shell, name: str) -> None:
    assert not accepts(BAD[name])
    is_good, text = shell.judge(BAD[name])
    assert not is_good, text


@pytest.mark.parametrize("name", STRICTER)
def test_only_the_sidecar_refuses(shell: Shell, name: str) -> None:
    assert accepts(STRICTER[name])
    assert not shell.judge(STRICTER[name])[0]


def test_what_is_listed_is_told_as_it_is(shell: Shell) -> None:
    manifest = Manifest.parse(GOOD["odd_paths"], "here")
    _, text = shell.judge(GOOD["odd_paths"])
    told = [line.split(" ", 2)[1:] for line in text.splitlines() if line.startswith("file ")]
    assert {_decoded(path): digest for digest, path in told} == manifest.sha256


def _decoded(escaped: str) -> str:
    """Undo the escapes of `printf %b`."""
    plain = bytearray()
    i = 0
    while i < len(escaped):
        if escaped[i] == "\\":
            plain.append(int(escaped[i + 1 : i + 5], 8))
            i += 5
        else:
            plain.append(ord(escaped[i]))
            i += 1
    return plain.decode()


def test_no_broken_manifest_passes_the_sidecar_alone(shell: Shell) -> None:
    """Change single bytes of a rich manifest, by a fixed seed."""
    source = random.Random(7)
    good = GOOD["everything"]
    agreed = 0
    for _ in range(100):
        changed = bytearray(good)
        for _ in range(source.randint(1, 2)):
            at = source.randrange(len(changed))
            changed[at : at + source.randint(0, 2)] = bytes(source.choices(b'"{}[],:\\0159eE.-+ /tnu\x00\xc3\xa9', k=1))
        is_good, text = shell.judge(bytes(changed))
        assert not is_good or accepts(bytes(changed)), (changed, text)
        agreed += is_good == accepts(bytes(changed))
    assert agreed >= 95


def test_characters_that_pass_have_one_spelling_and_show_as_themselves(shell: Shell) -> None:
    doubtful = [
        letter
        for letter in map(chr, (*range(0x80, 0xD800), *range(0xF900, 0x10000), *range(0x10000, 0x110000, 997)))
        if not letter.isprintable() or unicodedata.combining(letter) or unicodedata.normalize("NFC", letter) != letter
    ]
    _, text = shell.judge(raw(sha256={f"a{letter}": DIGEST for letter in doubtful}))
    assert text.count("problem sha256: ") == len(doubtful) > 3000
