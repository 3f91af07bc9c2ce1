"""Keeps windows in a Redis that several machines reach, so that another one can go on where this one died.

    serve-app:windows:<family>:journal            list; an element is what one append wrote, [[entity, time, {…}], …]
    serve-app:windows:<family>:head               hash; `image` names the image before the journal, `chunks` its parts
    serve-app:windows:<family>:image:<name>:<i>   part i of that image, safetensors of all windows
    serve-app:windows:<family>:lease              who writes; goes away by itself when that one no longer renews it
    serve-app:windows:<family>:fence              the number of the last writer; each new one counts it up
    serve-app:windows:<family>:aside:<number>:…   head and journal of other rules, as the writer of that number found it

One writes. The lease keeps others waiting while it is renewed: `append` and `compact` do so, and `renew` is for the
time between, three times in `lease_s` or more often. What makes it safe is the fence: every write compares it with the
writer's own number in the same atomic script, so that a writer that slept while another took over can write no more,
however late it wakes. A lease that ran out without anybody taking over is simply taken again.

What is acknowledged survives a kill of any of our processes and machines. Whether it survives the death of Redis is
for Redis to say: with `appendonly yes` and `appendfsync always` it does; with `everysec` the last second may go in a
power cut; without `appendonly` everything since its last snapshot. A warning is logged where it is off. A Redis that
forgot has forgotten the fence too: the next write tells so, and does not go on as if nothing was lost.

One server of Redis 6.2 or later, or one that sentinels keep; not a Redis Cluster, where these keys would lie on several
nodes.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from serve_app.adapters.window_image import image_as_bytes, records_as_json, records_of_json, table_of_bytes
from serve_app.domain.errors import NotTheWriterError, StoreError
from serve_app.domain.windows import Record, WindowRules
from serve_app.usecases.keep_windows import TableImage, WindowTable

_LOOK_S = 0.05
_READ_AT_ONCE = 64
"""Elements of the journal in one answer; an element is one group commit, a few kilobytes as a rule."""
CHUNK_BYTES = 4 << 20
"""Redis answers nobody while it takes a command. An image may have 70 MB: in parts, nobody waits for long, each part is
sent well within `timeout_s`, and the lease can be renewed in between."""
_STAGED_S = 600
"""Parts of an image that was never finished go away after this time."""

_TAKE_LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, -#ARGV[1]) ~= ARGV[1] then return {0, holder} end
local number = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], number .. ' ' .. ARGV[1], 'PX', ARGV[2])
return {1, number}
"""
_IS_WRITER = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.call('GET', KEYS[1]) or '' end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
"""
"""Begins every script of a writer: ends it with a text where another has come, else renews the lease."""
_RENEW = _IS_WRITER + "return 1"
_APPEND = _IS_WRITER + "return redis.call('RPUSH', KEYS[3], ARGV[4])"
_STAGE = _IS_WRITER + "redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[5]) return 1"
_COMMIT = (
    _IS_WRITER
    + """
local function part(name, i) return ARGV[4] .. ':' .. name .. ':' .. i end
local old = redis.call('HMGET', KEYS[4], 'image', 'chunks')
if old[1] == ARGV[5] then return 1 end -- a second try of what was done already
for i = 0, ARGV[6] - 1 do
    if redis.call('PERSIST', part(ARGV[5], i)) == 0 then return redis.error_reply('a part of the image is gone') end
end
redis.call('HSET', KEYS[4], 'image', ARGV[5], 'chunks', ARGV[6])
redis.call('LTRIM', KEYS[3], ARGV[7], -1)
if old[1] then
    for i = 0, old[2] - 1 do redis.call('UNLINK', part(old[1], i)) end
end
return 1
"""
)
_PUT_ASIDE = (
    _IS_WRITER
    + """
redis.call('RENAME', KEYS[4], ARGV[4] .. ':head')
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('COPY', KEYS[3], ARGV[4] .. ':journal') end
return 1
"""
)
_CLOSE = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""
log = structlog.get_logger(__name__)


class RedisJournal:
    """The windows of one family in Redis. `renew` may be called from another thread than the rest.

    Args:
        url: `redis://`, `rediss://` or `unix://`; a password in it appears in no message.
        family: Whose windows these are.
        rules: Those of the table. An image of another length, step or metrics is kept aside with its journal, and what
            the journal says of metrics that are still kept is taken over.
        timeout_s: Longest wait for a connection and for an answer. A connection that broke is made anew once in a call.
        lease_s: How long another has to wait after this writer died without `close`.
    """

    def __init__(
        self, url: str, family: str, rules: WindowRules, *, timeout_s: float = 5.0, lease_s: float = 5.0
    ) -> None:
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._prefix = f"serve-app:windows:{family}"
        self._keys = [f"{self._prefix}:{name}" for name in ("lease", "fence", "journal", "head")]
        self._rules = rules
        self._lease_ms = round(lease_s * 1000)
        self._owner = f"process {os.getpid()} on {socket.gethostname()} ({secrets.token_hex(4)})"
        self._number: int | None = None
        self._n_images = 0
        self._scripts = {
            text: self._client.register_script(text)
            for text in (_TAKE_LEASE, _RENEW, _APPEND, _STAGE, _COMMIT, _PUT_ASIDE, _CLOSE)
        }
        self.journal_bytes = 0

    def open(self, *, wait_s: float = 0.0) -> WindowTable:
        """Become the only writer and read what was kept.

        Raises:
            NotTheWriterError: Another still writes after `wait_s`.
            StoreError: Redis cannot be reached, or what it has cannot be read.
        """
        with self._told("read"):
            self._number = self._taken_lease(wait_s)
            try:
                self._warn_of_forgetting()
                return self._read()
            except BaseException:
                self.close()
                raise

    def append(self, records: Sequence[Record]) -> None:
        """Write records that are about to be acknowledged, in one element of the journal.

        Raises:
            NotTheWriterError: Another has become the writer; `open` comes next.
            StoreError: Redis cannot be reached, or is full.
        """
        body = records_as_json(records)
        with self._told("written"):
            self._write(_APPEND, body)
        self.journal_bytes += len(body)

    def compact(self, image: TableImage) -> None:
        """Write an image that holds all that was appended; at its end it takes the place of what it replaces, at once.

        Raises:
            NotTheWriterError: Another has become the writer.
            StoreError: Redis cannot be reached, or is full; everything that was there still is.
        """
        replaced_bytes = self.journal_bytes
        with self._told("written"):
            n_replaced = self._client.llen(self._keys[2])
            self._n_images += 1
            name = f"{self._number}-{self._n_images}"
            content = memoryview(image_as_bytes(image, self._rules))
            parts = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
            for i, part in enumerate(parts):
                self._write(_STAGE, part, _STAGED_S, third_key=self._part(name, i))
            self._write(_COMMIT, f"{self._prefix}:image", name, len(parts), n_replaced)
        self.journal_bytes -= replaced_bytes

    def renew(self) -> None:
        """Stay the writer; to be called three times in `lease_s` or more often when nothing is appended.

        Raises:
            NotTheWriterError: Another has become the writer.
            StoreError: Redis cannot be reached now; until another has come, the next call may succeed.
        """
        with self._told("kept"):
            self._write(_RENEW)

    def close(self) -> None:
        """Let another begin at once. A Redis that cannot be reached lets it begin when the lease ends."""
        number, self._number = self._number, None
        if number is not None:
            try:
                self._scripts[_CLOSE](keys=self._keys, args=[number])
            except redis.RedisError as error:
                log.warning("lease on windows not given back", reason=str(error), prefix=self._prefix)
        self._client.close()

    def _taken_lease(self, wait_s: float) -> int:
        give_up_s = time.monotonic() + wait_s
        while True:
            args: list[str | int] = [self._owner, self._lease_ms]
            is_mine, answer = cast(tuple[int, Any], self._scripts[_TAKE_LEASE](keys=self._keys, args=args))
            if is_mine:
                return int(answer)
            if time.monotonic() >= give_up_s:
                raise self._not_the_writer(answer)
            time.sleep(_LOOK_S)

    def _write(self, script: str, *args: str | int | bytes | memoryview, third_key: str | None = None) -> None:
        """Run a script of the writer's; `third_key` stands in for the journal."""
        if self._number is None:
            raise NotTheWriterError(f"expected to be the writer of {self._prefix}, which open() makes this process")
        keys = self._keys if third_key is None else [*self._keys[:2], third_key]
        answer = self._scripts[script](keys=keys, args=[self._number, self._owner, self._lease_ms, *args])
        if isinstance(answer, bytes):
            self._number = None
            raise self._not_the_writer(answer)

    def _not_the_writer(self, lease: bytes) -> NotTheWriterError:
        _, _, owner = lease.decode(errors="replace").partition(" ")
        found = f"{owner} at work" if owner else "that another was it since, or that Redis has forgotten"
        return NotTheWriterError(f"expected to be the only writer of {self._prefix}, found {found}")

    def _read(self) -> WindowTable:
        table = self._image() or WindowTable(self._rules)
        self.journal_bytes = start = 0
        while True:
            end = start + _READ_AT_ONCE - 1
            elements = cast(list[bytes], self._client.lrange(self._keys[2], start, end))
            for element in elements:
                for record in records_of_json(element, self._rules):
                    table.put(record)
                self.journal_bytes += len(element)
            if len(elements) < _READ_AT_ONCE:
                return table
            start += _READ_AT_ONCE
            self._write(_RENEW)

    def _image(self) -> WindowTable | None:
        """Return what the newest image holds, or None where there is none that these rules can read."""
        head = cast(dict[bytes, bytes], self._client.hgetall(self._keys[3]))
        if not head:
            return None
        name, n_parts = head[b"image"].decode(), int(head[b"chunks"])
        parts = []
        for i in range(n_parts):
            parts.append(cast(bytes | None, self._client.get(self._part(name, i))) or b"")
            self._write(_RENEW)
        try:
            return table_of_bytes(b"".join(parts), self._rules)
        except ValueError as error:
            log.error("windows put aside", prefix=self._prefix, reason=str(error), number=self._number)
            self._write(_PUT_ASIDE, f"{self._prefix}:aside:{self._number}")
            return None

    def _part(self, image: str, i: int) -> str:
        return f"{self._prefix}:image:{image}:{i}"

    def _warn_of_forgetting(self) -> None:
        try:
            facts = self._client.info("persistence")
        except redis.ResponseError:  # not permitted to ask
            return
        if not facts.get("aof_enabled"):
            log.warning("this Redis may forget windows when it dies: appendonly is off", prefix=self._prefix)

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """Raise what Redis says as an error of ours."""
        try:
            yield
        except (redis.RedisError, ValueError) as error:
            to = self._client.connection_pool.connection_kwargs
            where = to.get("path") or f"{to.get('host', 'localhost')}:{to.get('port', 6379)}"
            raise StoreError(f"windows cannot be {done} in Redis at {where}: {error}") from error
