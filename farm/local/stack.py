"""A whole farm on this machine: an embedded server, workers, API and Flower, and the note by which others find them.

It says which parts there are, what each is told and when all are ready; ``supervisor`` keeps them running. It knows
nothing of jobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Callable
from typing import Literal, Self

from pydantic import SecretStr

from farm import __version__, keys
from farm.connection import address, connect, our_errors
from farm.errors import FarmError, SettingsError
from farm.listening import url_of
from farm.local.environ import child_environ, with_values
from farm.local.folder import Folder, Note
from farm.local.parts import Program, Server
from farm.local.server import EmbeddedServer, free_port, new_password
from farm.local.sites import api_site, flower_site
from farm.local.supervisor import Event, StackFailed, Supervisor
from farm.rest import with_keys
from farm.settings import Settings

POLL_S = 0.05
DRAIN_MARGIN_S = 1.0  # a worker ends itself after drain_s; this is for one that can't


class Stack:
    """A local farm in ``settings.local.state_dir``. With ``settings.redis.url`` set it uses that server."""

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int = 1,
        system_worker: bool = True,
        flower: bool = True,
        api: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.folder = Folder(settings.local.folder)
        self.settings = with_values(settings, local={"state_dir": self.folder.path})
        self.worker_names = [f"{self._prefix()}-{number}" for number in range(1, workers + 1)]
        self.started_at = 0.0
        self._system_worker = system_worker
        self._metrics_ports: dict[str, int] = {}
        self._sites = [*([api_site(settings)] if api else []), *([flower_site()] if flower else [])]
        self._on_event = on_event or (lambda _: None)
        self._server: EmbeddedServer | None = None
        self._started_ms = 0
        self._supervisor: Supervisor | None = None

    @property
    def redis_url(self) -> str:
        """The server's address, with its password; empty before ``start``."""
        if self._server is not None:
            return self._server.url
        return self.settings.redis.url.get_secret_value() if self.settings.redis.url else ""

    @property
    def farm_settings(self) -> Settings:
        """Settings that lead to this farm."""
        return with_values(self.settings, redis={"url": SecretStr(self.redis_url)})

    @property
    def flower_url(self) -> str | None:
        """Where Flower is, if there is one."""
        return self._url("flower")

    @property
    def api_url(self) -> str | None:
        """Where the API is, if there is one."""
        return self._url("api")

    @property
    def metrics(self) -> dict[str, str]:
        """Where each part answers Prometheus, by its name: worker-1, worker-2 …, system, api."""
        ports: dict[str, int] = {**self._metrics_ports, **{site.name: site.metrics_port for site in self._sites}}
        host = self.settings.telemetry.host
        return {part: f"{url_of(host, port)}/metrics" for part, port in ports.items() if port}

    @property
    def pids(self) -> dict[str, int]:
        """The process of each part that has one."""
        parts = self._supervisor.parts if self._supervisor else []
        return {part.name: part.pid for part in parts if part.pid is not None}

    @property
    def is_stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._supervisor is not None and self._supervisor.wait(0)

    def start(self) -> None:
        """Start everything; returns once the server answers and the rest was launched.

        Raises AlreadyRunning, ServerMissing, ServerFailed, or ServerUnreachable for a server that was named;
        SettingsError when writes are to wait for replicas, which the server that comes along has none of.
        """
        if self.settings.redis.url is None and self.settings.redis.wait_replicas:
            raise SettingsError(
                f"FARM_REDIS__WAIT_REPLICAS={self.settings.redis.wait_replicas}: the server of a local farm has no "
                "replicas; unset it, or name a server that has some with FARM_REDIS__URL"
            )
        self.folder.claim()
        self.started_at = time.time()
        self._supervisor = Supervisor(self._set_up, self._tell)
        self._supervisor.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until all model workers registered, API and Flower answer; others can find the farm then.

        Returns False when asked to stop first.
        Raises StackFailed after the time or when a part can't run, ModelRefused when a worker can't serve its model.
        """
        supervisor = self._running()
        deadline = time.monotonic() + timeout_s
        while waiting := self._not_ready():
            supervisor.check()
            if time.monotonic() > deadline:
                raise StackFailed(
                    f"{', '.join(waiting)} not ready after {timeout_s:g} s; see the logs in {self.folder.logs}"
                )
            if supervisor.wait(POLL_S):
                return False
        supervisor.is_settled = True
        self._write_note()
        return True

    def wait(self) -> None:
        """Return when asked to stop. Raises what brought the farm down otherwise."""
        supervisor = self._running()
        while not supervisor.wait(0.2):
            supervisor.check()

    def ask_to_stop(self) -> None:
        """Have ``wait`` return. Fit for a signal handler; asking again makes the stop immediate."""
        if self._supervisor is not None:
            self._supervisor.ask_to_stop()

    def stop(self) -> None:
        """Let workers and API drain, then end Flower, the server last; kill what overstays. May be called twice."""
        if self._supervisor is not None:
            self.folder.remove_note()
            self._supervisor.stop()
            self._supervisor = None
        self.folder.release()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _set_up(self, supervisor: Supervisor) -> None:
        """Launch the parts, in the supervisor's thread. The server answers before anything else starts."""
        if self.settings.redis.url is None:
            port, password = self.folder.server_door()
            self._server = EmbeddedServer(
                self.folder.data,
                port=free_port(port),
                password=password or new_password(),
                appendfsync="always" if self.settings.redis.durability == "fsync" else "everysec",
                log_path=self.folder.log_path("redis"),
                held_fd=self.folder.data_lock,
            )
            supervisor.launch(Server(self._server))
            self.folder.keep_server_door(self._server.port, self._server.password)
        with connect(self.farm_settings.redis) as client, our_errors(address(self.farm_settings.redis)):
            seconds, microseconds = client.time()
        self._started_ms = seconds * 1000 + microseconds // 1000
        for number, name in enumerate(self.worker_names, 1):
            supervisor.launch(self._worker(name, "model", f"worker-{number}"))
        if self._system_worker:
            supervisor.launch(self._worker(f"{self._prefix()}-system", "system", "system"))
        self._launch_sites(supervisor)

    def _launch_sites(self, supervisor: Supervisor) -> None:
        for site in list(self._sites):
            if site.is_installed():
                supervisor.launch(site.part(self._site_settings, self.folder.log_path(site.name)))
            else:
                self._sites.remove(site)
                words = f"is not installed; pip install 'bloomfarm[{site.name}]' adds it"
                self._tell(Event(site.name, "missing", words))

    @property
    def _site_settings(self) -> Settings:
        """Settings that lead to this farm, with its API open to this machine if the farm is this machine's alone."""
        return with_values(self.farm_settings, api={"keys": with_keys(self.settings).api.keys})

    def _url(self, name: str) -> str | None:
        return next((site.url for site in self._sites if site.name == name), None)

    def _worker(self, name: str, role: Literal["model", "system"], part: str) -> Program:
        """part: what its metrics go by."""
        settings = with_values(
            self.farm_settings,
            worker={"name": name, "role": role, "heartbeat_file": self.folder.run / f"{name}.heartbeat"},
            engine={"threads": self.settings.engine.threads or _threads_each(len(self.worker_names))},
        )

        def environ() -> dict[str, str]:
            # A part that is started again has the port that it had, if possible.
            port = self._metrics_ports[part] = free_port(self._metrics_ports.get(part, 0))
            return child_environ(with_values(settings, telemetry={"port": port}))

        return Program(
            name,
            "workers",
            self.folder.log_path(name),
            environ,
            rank=0,
            stop_s=self.settings.worker.drain_s + DRAIN_MARGIN_S,
            is_essential=True,
        )

    def _prefix(self) -> str:
        """What the names of this farm's workers begin with: distinct on a server that other machines use too."""
        if self.settings.worker.name:
            return self.settings.worker.name
        if self.settings.redis.url is None:
            return "local"
        digest = hashlib.sha256(str(self.folder.path).encode()).hexdigest()[:4]
        return f"{socket.gethostname()}-{digest}"

    def _not_ready(self) -> list[str]:
        """The parts that are not there yet, by name."""
        try:
            given_up = self._supervisor.given_up if self._supervisor else set()
            silent = [site.name for site in self._sites if site.name not in given_up and not site.answers()]
            return self._unregistered() + silent
        except FarmError:
            return ["redis"]

    def _unregistered(self) -> list[str]:
        """Workers that take no jobs yet, each with its trouble; those of earlier runs may stand in the ledger still."""
        if not self.worker_names:
            return []
        where = address(self.farm_settings.redis)
        with our_errors(where), connect(self.farm_settings.redis) as client:
            latest = client.hmget(keys.NAMES, self.worker_names)
            beats = client.zmscore(keys.WORKERS, [str(worker or "") for worker in latest])
            troubles = [client.hget(keys.worker(str(worker or "")), "trouble") for worker in latest]
        seen = zip(self.worker_names, beats, troubles, strict=True)
        return [
            f"{name} ({trouble})" if trouble else name
            for name, beat, trouble in seen
            if trouble or beat is None or float(beat) < self._started_ms
        ]

    def _tell(self, event: Event) -> None:
        supervisor = self._supervisor
        if event.kind == "restarted" and supervisor is not None and supervisor.is_settled:
            self._write_note()  # it may have another port
        with contextlib.suppress(OSError):  # a closed terminal is no reason to stop watching
            self._on_event(event)

    def _write_note(self) -> None:
        self.folder.write_note(
            Note(
                self.redis_url,
                self.flower_url,
                self.api_url,
                os.getpid(),
                self.started_at,
                self.worker_names,
                self.settings.model.id,
                __version__,
                self.metrics,
            )
        )

    def _running(self) -> Supervisor:
        assert self._supervisor is not None, "start the stack first"
        return self._supervisor


def _threads_each(workers: int) -> int | None:
    """How many cores each of several workers gets; None leaves it to the one there is."""
    if workers < 2:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)
