"""The farm under test: a server, workers and the proxies between them, each of which can be broken and mended."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psutil
import redis

from farm import keys
from farm.ledger.scripts import sha
from farm.local.server import EmbeddedServer
from farm.settings import Settings, load_settings
from tests.chaos import engine
from tests.chaos.place import Place
from tests.chaos.profiles import Profile
from tests.chaos.proxy import FaultProxy
from tests.chaos.record import Recorder
from tests.chaos.schedule import CLIENTS
from tests.commands import environ
from tests.conftest import wait_until

READY_S = 90.0
GLANCE_S = 0.5  # how long looking at the ledger may hold up a fault


class Testbed:
    """A farm in a folder. Use it in a ``with``; afterwards nothing of it runs."""

    __test__ = False  # no test, whatever pytest makes of its name

    def __init__(self, folder: Path, profile: Profile, recorder: Recorder) -> None:
        self.profile = profile
        self._recorder = recorder
        self.counts = folder / "counts"
        self.logs = folder / "logs"
        for path in (self.counts, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        self.server = EmbeddedServer(folder / "server", appendfsync=profile.appendfsync)
        self.places: dict[str, Place] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.server.kill)
            self.server.start()
            self.direct = undo.enter_context(self._connect(5.0))
            self._glance = undo.enter_context(self._connect(GLANCE_S))
            self._client_proxy = self._proxy(undo)
            for name in worker_names(self.profile):
                self.places[name] = self._place(name, self._proxy(undo))
                undo.callback(self.places[name].kill)
                self.places[name].start()
            self._wait_ready()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_raised: object) -> None:
        try:
            self.heal()
        finally:
            self._undo.close()

    def _connect(self, timeout_s: float) -> redis.Redis:
        return redis.Redis.from_url(self.server.url, decode_responses=True, socket_timeout=timeout_s)

    def _proxy(self, undo: ExitStack) -> FaultProxy | None:
        return undo.enter_context(FaultProxy(self.server.url)) if self.profile.has_proxies else None

    def _place(self, name: str, proxy: FaultProxy | None) -> Place:
        is_stamping = self.profile.engine == "stamping"
        environment = environ(
            REDIS__URL=proxy.url if proxy else self.server.url,
            REDIS__DURABILITY=self.profile.durability,
            ENGINE__KIND="synthetic" if is_stamping else "bloom",
            ENGINE__SYNTHETIC_STEP_S=self.profile.step_s,
            ENGINE__MAX_SLOTS=self.profile.slots,
            ENGINE__THREADS=1,
            LEASE__LEASE_S=self.profile.lease_s,
            LOGS__FORMAT="json",
            **self.profile.worker_settings,
        )
        module = "tests.chaos.worker" if is_stamping else "workers"
        return Place(name, proxy, module, {**environment, engine.COUNTS: str(self.counts)}, self.logs, self._recorder)

    def _wait_ready(self) -> None:
        places = self.places.values()
        wait_until(
            lambda: all(place.has_fallen or self.direct.hexists(keys.NAMES, place.worker) for place in places),
            why=f"workers to start; their logs are in {self.logs}",
            timeout_s=READY_S,
        )
        fallen = [place.worker for place in places if place.has_fallen]
        assert not fallen, f"{fallen} did not start; their logs are in {self.logs}"

    # For the clients, and for those who look on.

    def client_settings(self) -> Settings:
        """Settings for clients, through their proxy if there is one."""
        url = self._client_proxy.url if self._client_proxy else self.server.url
        return load_settings({}, redis={"url": url, "durability": self.profile.durability})

    def direct_settings(self, **groups: object) -> Settings:
        """Settings past all proxies."""
        return load_settings({}, redis={"url": self.server.url}, **groups)

    def aboard(self, name: str) -> tuple[str, tuple[str, ...]]:
        """The incarnation of a place's worker and the jobs that it holds, as far as the ledger can be asked now."""
        try:
            worker = str(self._glance.hget(keys.NAMES, self.places[name].worker) or "")
            return worker, tuple(sorted(self._glance.smembers(keys.held(worker))))
        except redis.exceptions.RedisError:
            return "", ()

    @property
    def running(self) -> int:
        """How many workers run."""
        return sum(place.is_running for place in self.places.values())

    def orphans(self) -> list[int]:
        """Engines that outlived their workers."""
        return [pid for pid in engine.lives(self.counts) if _is_engine_of(pid, self.counts)]

    # To break and to mend.

    def proxy(self, target: str) -> FaultProxy:
        """The proxy before a worker or the clients."""
        proxy = self._client_proxy if target == CLIENTS else self.places[target].proxy
        assert proxy is not None, "faults of the network need a profile with proxies"
        return proxy

    def signal_server(self, how: signal.Signals) -> None:
        """Stop or thaw the server."""
        if self.server.pid is not None:
            os.kill(self.server.pid, how)

    def reap(self) -> None:
        """Start again workers that have ended though nobody asked them to."""
        for place in self.places.values():
            if place.has_fallen:
                place.start()

    def heal(self) -> None:
        """Undo every fault of the server, the network and frozen processes."""
        if self.server.is_running():
            self.signal_server(signal.SIGCONT)
        else:
            self.server.start()
        for place in self.places.values():
            place.thaw()
            if place.proxy:
                place.proxy.heal()
        if self._client_proxy:
            self._client_proxy.heal()

    def revive(self) -> None:
        """Have a worker run at every place; they may still be starting."""
        pause = threading.Event()
        deadline = time.monotonic() + READY_S
        for place in self.places.values():
            # One that drains has to end first.
            while not place.start() and place.is_leaving and time.monotonic() < deadline:
                pause.wait(0.05)

    def terminate_all(self, timeout_s: float) -> list[str]:
        """Drain all workers. Returns the names of those that did not end in time; they are killed."""
        for place in self.places.values():
            place.signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        return [p.worker for p in self.places.values() if not p.end(max(0.0, deadline - time.monotonic()))]


def _is_engine_of(pid: int, counts: Path) -> bool:
    """Whether this process counts into that folder: the number alone may be somebody else's by now."""
    try:
        return psutil.Process(pid).environ().get(engine.COUNTS) == str(counts)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return False


def worker_names(profile: Profile) -> list[str]:
    """The places of a profile's workers."""
    return [f"w{number}" for number in range(1, profile.workers + 1)]


def script_call(name: str) -> bytes:
    """The bytes by which a proxy knows the call of a script."""
    return sha(name).encode()
