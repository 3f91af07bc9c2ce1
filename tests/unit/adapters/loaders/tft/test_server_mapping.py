import pytest

from serve_app.adapters.loaders.tft.server_mapping import ServerMapping
from tests.unit.adapters.loaders.tft.forecasters import SERVERS


def test_mapping_finds_numbers_by_name_and_key_and_gives_nought_to_strangers() -> None:
    mapping = ServerMapping.of(SERVERS)
    assert mapping.numbers_of(["db-01", "web-01", "nobody", "web-02"]).tolist() == [3, 1, 0, 2]
    assert ServerMapping.parse(mapping.to_bytes()).servers == SERVERS


@pytest.mark.parametrize(
    "raw", [b"[]", b"{}", b'{"a": 0}', b'{"a": 1, "b": 3}', b'{"a": 1, "b": 1}', b'{"a": true}', b'{"a": 1.0}', b"{"]
)
def test_mapping_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected|Expecting"):
        ServerMapping.parse(raw)


def test_servers_with_the_same_key_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the same for web-01, web-01"):
        ServerMapping.of(["web-01", "db-01", "web-01"])
