"""Where windows are kept, by the configuration."""

from pathlib import Path

from serve_app.adapters.window_journal import WindowJournal
from serve_app.config_windows import JournalConfig, WindowsConfig
from serve_app.domain.errors import ConfigError
from serve_app.usecases.record_journal import RecordJournal


def make_journal(settings: WindowsConfig, *, family: str) -> RecordJournal:
    """Make the journal of a family; its directory is absolute, or relative to the working directory.

    Raises:
        ConfigError: It is to be Redis, and its client is not installed.
    """
    store = settings.store
    if isinstance(store, JournalConfig):
        return WindowJournal(Path(store.directory or f"windows/{family}"), settings.rules, syncs=store.syncs)
    # Here, because only servers with such a family need the client.
    try:
        from serve_app.adapters.window_redis import RedisJournal
    except ImportError as error:
        problem = "windows.store: expected the package redis for kind redis, found none: pip install 'serve-app[redis]'"
        raise ConfigError([problem]) from error
    return RedisJournal(store.url, family, settings.rules, timeout_s=store.timeout_s)
