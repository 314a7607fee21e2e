"""A master, its replica and Sentinels that watch over them, for tests of what a failover does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.local.server import HOST, EmbeddedServer, find_binary, free_port
from tests.chaos.proxy import FaultProxy
from tests.conftest import wait_until

SERVICE = "barn"
DOWN_MS = 500  # how long a Sentinel waits for a server that does not answer


@dataclass
class Sentinel:
    """One Sentinel process."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, master: EmbeddedServer, quorum: int) -> None:
        self.folder.mkdir(parents=True)
        path = self.folder / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} {HOST} {master.port} {quorum}\n"
            f"sentinel auth-pass {SERVICE} {master.password}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        path.chmod(0o600)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([str(find_binary()), str(path), "--sentinel"], stdout=log, stderr=log)

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(HOST, self.port, decode_responses=True, socket_timeout=1, retry=Retry(NoBackoff(), 0))

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Service:
    """The servers of one service. ``master`` is the one that was it at first; the replica follows it over ``link``."""

    master: EmbeddedServer
    replica: EmbeddedServer
    link: FaultProxy
    sentinels: list[Sentinel]

    @property
    def url(self) -> str:
        """What clients that follow the master are given."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:{self.master.password}@{hosts}/{SERVICE}"

    def wait_until_linked(self) -> None:
        """Return when the replica follows the master."""
        with client_of(self.replica) as replica:
            wait_until(lambda: replica.info("replication").get("master_link_status") == "up", why="the replica to link")

    def wait_until_watched(self) -> None:
        """Return when every Sentinel knows the replica, and the others."""
        for sentinel in self.sentinels:
            with contextlib.closing(sentinel.client) as client:
                wait_until(lambda client=client: self._is_known(client), why="a Sentinel to know all")  # type: ignore[misc]

    def _is_known(self, client: redis.Redis) -> bool:
        with contextlib.suppress(redis.RedisError):
            state = client.sentinel_master(SERVICE, return_responses=True)
            replicas = client.sentinel_slaves(SERVICE)
            return (
                state["num-other-sentinels"] == len(self.sentinels) - 1
                and len(replicas) == 1
                and replicas[0].get("master-link-status") == "ok"
            )
        return False

    def fail_over(self) -> None:
        """Have a Sentinel promote the replica while the master is alive; returns when it is."""
        with contextlib.closing(self.sentinels[0].client) as client:

            def is_done() -> bool:
                with contextlib.suppress(redis.ResponseError):  # one is under way
                    client.sentinel_failover(SERVICE)
                with contextlib.suppress(AssertionError):  # it was given up: a busy machine
                    wait_until(lambda: self._master(client) == self.replica.port, why="the promotion", timeout_s=6)
                return self._master(client) == self.replica.port

            wait_until(is_done, why="the failover")

    def wait_until_promoted(self) -> None:
        """Return when the Sentinels call the replica the master."""
        for sentinel in self.sentinels:
            with contextlib.closing(sentinel.client) as client:
                wait_until(lambda client=client: self._master(client) == self.replica.port, why="the promotion")  # type: ignore[misc]

    def _master(self, client: redis.Redis) -> int:
        with contextlib.suppress(redis.RedisError):
            return int(client.sentinel_master(SERVICE, return_responses=True)["port"])
        return 0


def client_of(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=2, retry=Retry(NoBackoff(), 0))


@contextlib.contextmanager
def replicated(folder: Path, *, sentinels: int = 0, **options: str) -> Iterator[Service]:
    """A master and its replica, linked, and Sentinels that know both. All are killed at the end.

    options: of both servers, with _ for -.
    """
    common = {"repl-diskless-sync-delay": "0", **{name.replace("_", "-"): value for name, value in options.items()}}
    master = EmbeddedServer(folder / "master", appendfsync="always", options=dict(common))
    master.options["masterauth"] = master.password
    replica = EmbeddedServer(
        folder / "replica",
        appendfsync="always",
        password=master.password,
        options={**common, "masterauth": master.password},
    )
    watchers = [Sentinel(folder / f"sentinel{n}") for n in range(sentinels)]
    with contextlib.ExitStack() as stack:
        stack.callback(end, master)
        stack.callback(end, replica)
        master.start()
        link = stack.enter_context(FaultProxy(master.url))
        replica.options["replicaof"] = f"{HOST} {link.port}"
        replica.start()
        service = Service(master, replica, link, watchers)
        service.wait_until_linked()
        for sentinel in watchers:
            stack.callback(sentinel.stop)
            sentinel.start(master, quorum=sentinels // 2 + 1)
        service.wait_until_watched()
        yield service


def end(server: EmbeddedServer) -> None:
    """Kill a server, frozen or not."""
    if server.is_running():
        thaw(server)
    server.kill()


def freeze(server: EmbeddedServer) -> None:
    """Stop a server as a machine that hangs: its connections stay."""
    os.kill(server.pid or 0, signal.SIGSTOP)


def thaw(server: EmbeddedServer) -> None:
    os.kill(server.pid or 0, signal.SIGCONT)
