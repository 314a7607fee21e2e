"""Where the content of files lies: a folder, or whatever fsspec reaches. Knows nothing of whose they are.

Paths are relative, made by the farm and never by a caller. A file appears at its path whole or not at all. All calls
block. What the store does wrong becomes StoreUnavailable, and a file that is not there FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from farm.errors import FarmError, SettingsError
from farm.settings import Settings

BLOCK_BYTES = 8 << 20  # what a file that is written or read remotely holds in memory
READ_BYTES = 1 << 20


class StoreUnavailable(FarmError):
    """The file store does not answer, or has no room."""

    code = "file_store_unavailable"
    retryable = True
    http_status = 503


class Writer(Protocol):
    """A file that is being written. Leaving its ``with`` without ``commit`` discards it."""

    def write(self, data: bytes) -> None:
        """Add to it."""

    def commit(self) -> None:
        """Have it stand at its path, on disk."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Store(Protocol):
    """A file store."""

    def writer(self, path: str) -> Writer:
        """Begin to write a file, in place of one that is there."""

    def reader(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking; read it within ``store_errors``. Raises FileNotFoundError."""

    def delete(self, path: str) -> None:
        """Delete a file, or with a slash at the end a folder and all in it; nothing happens where nothing is."""


def open_store(settings: Settings) -> Store:
    """The store that FARM_FILES__URL names; nothing is asked of it yet. Raises SettingsError."""
    url = settings.files.url.get_secret_value() if settings.files.url else ""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        return FolderStore(Path(rest if separator else url).expanduser() if url else settings.local.folder / "files")
    return RemoteStore(url)


class FolderStore:
    """Files in a folder that is made when it is needed, for its owner alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, path: str) -> Writer:
        with store_errors():
            target = self._root / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _FolderWriter(target)

    def reader(self, path: str) -> BinaryIO:
        with store_errors():
            return (self._root / path).open("rb")

    def delete(self, path: str) -> None:
        with store_errors(), contextlib.suppress(FileNotFoundError):
            if path.endswith("/"):
                shutil.rmtree(self._root / path)
            else:
                for left in (self._root / path).parent.glob(f".{Path(path).name}.*"):  # of a writer that was killed
                    left.unlink(missing_ok=True)
                (self._root / path).unlink()


class _FolderWriter:
    """Writes beside the target, and takes its place at the end."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        self._file = os.fdopen(
            os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        )

    def write(self, data: bytes) -> None:
        with store_errors():
            self._file.write(data)

    def commit(self) -> None:
        with store_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._target)
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class RemoteStore:
    """Files behind a URL that fsspec knows, as s3://bucket/prefix. Its driver looks for its own settings."""

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0]
        try:
            fsspec: Any = importlib.import_module("fsspec.core")
            # What another process writes must be seen at once.
            self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            package = "bloomfarm[s3]" if scheme in ("s3", "s3a") else error.name or "fsspec"
            raise SettingsError(f"FARM_FILES__URL: {scheme}:// needs a package; pip install '{package}'") from None
        except ValueError:
            raise SettingsError(f"FARM_FILES__URL: no driver for {scheme}://; give a folder or s3://bucket/…") from None

    def writer(self, path: str) -> Writer:
        with store_errors():
            return _RemoteWriter(self._fs.open(self._at(path), "wb", autocommit=False, block_size=BLOCK_BYTES))

    def reader(self, path: str) -> BinaryIO:
        with store_errors():
            file = self._fs.open(self._at(path), "rb", block_size=BLOCK_BYTES, cache_type="readahead")
            return io.BufferedReader(file, READ_BYTES)  # fsspec's own readline can't be bounded

    def delete(self, path: str) -> None:
        with store_errors(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._at(path.rstrip("/")), recursive=path.endswith("/"))

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"


class _RemoteWriter:
    """A file of fsspec's that is kept only when it is committed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._is_done = False

    def write(self, data: bytes) -> None:
        with store_errors():
            self._file.write(data)

    def commit(self) -> None:
        with store_errors():
            self._file.close()
            self._file.commit()
            self._is_done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._is_done:
            with contextlib.suppress(Exception):  # whatever it is, an earlier error is being told
                self._file.discard()
                self._file.closed = True


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn whatever a store raises into ours, but for a file that is missing."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # drivers have errors of their own, of no common class
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StoreUnavailable(f"the file store does not answer or has no room ({reason}); try again") from error
