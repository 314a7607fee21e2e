"""Redis with replicas and Sentinels, from the scripts and configurations of redis-ha: servers on loopback addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm import Farm
from farm.local.server import free_port
from farm.settings import load_settings
from tests.conftest import wait_until
from tests.k8s.manifests import build
from tests.k8s.pods import Cluster, Pod

pytestmark = pytest.mark.alone

SERVERS = ("127.0.10.1", "127.0.10.2", "127.0.10.3")
SENTINELS = ("127.0.20.1", "127.0.20.2", "127.0.20.3")


@dataclass
class Trio:
    """Three servers and three Sentinels by address."""

    cluster: Cluster
    servers: dict[str, Pod]
    sentinels: dict[str, Pod]

    def client(self, address: str, user: str = "admin") -> redis.Redis:
        return redis.Redis(
            address,
            self.servers[address].ports["redis"],
            username=user,
            password=self.cluster.secrets["bloomfarm-redis"][user],
            decode_responses=True,
            socket_timeout=2,
            retry=Retry(NoBackoff(), 0),
        )

    def sentinel(self, address: str) -> redis.Redis:
        port = self.sentinels[address].ports["sentinel"]
        return redis.Redis(address, port, decode_responses=True, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def role(self, address: str) -> str:
        with contextlib.suppress(redis.exceptions.RedisError), self.client(address) as client:
            return str(client.role()[0])
        return "gone"

    def master(self) -> str | None:
        """The one master that all Sentinels name and that says so itself."""
        named = set()
        for address in self.sentinels:
            with contextlib.suppress(redis.exceptions.RedisError), self.sentinel(address) as sentinel:
                named.add(sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "bloomfarm")[0])
        [one] = named if len(named) == 1 else [None]
        return one if one and self.role(one) == "master" else None

    def is_whole(self) -> bool:
        """One master with two replicas that follow it, known to all Sentinels, which know each other."""
        master = self.master()
        if master is None:
            return False
        if self.replicas(master) != ["online", "online"]:
            return False
        for address in self.sentinels:
            with self.sentinel(address) as sentinel:
                [about] = sentinel.sentinel_masters().values()
                if (about["num-other-sentinels"], about["num-slaves"]) != (2, 2):
                    return False
        return True

    def replicas(self, address: str) -> list[str | None]:
        """How a master's first two replicas stand."""
        with self.client(address) as client:
            about = client.info("replication")
        return [about.get(f"slave{number}", {}).get("state") for number in range(2)]

    def fail_over(self) -> str:
        """Kill the master. Returns the next one, which has a replica that follows it."""
        before = self.master()
        assert before is not None
        self.servers[before].kill()
        wait_until(lambda: self.master() not in (None, before), why="another master")
        master = self.master()
        assert master is not None
        with self.client(master) as client:
            wait_until(lambda: client.info("replication").get("min_slaves_good_slaves") == 1, why="its replica")
        return master

    def get(self, address: str) -> str | None:
        """What a server has of the key that these tests write."""
        with contextlib.suppress(redis.exceptions.RedisError), self.client(address) as client:
            return str(client.get("{farm}:seq"))
        return None

    def refused(self) -> set[tuple[str, str]]:
        """Whom the servers refused what."""
        found = set()
        for address in self.servers:
            with self.client(address) as client:
                found |= {(entry["username"], entry["object"]) for entry in client.acl_log(128)}
        return found


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Whole when a test begins and when it ends."""
    cluster = Cluster(build("local", ("redis-ha",)), tmp_path_factory.mktemp("trio"))
    port, sentinel_port = free_port(), free_port()
    everywhere = {
        "FIRST": SERVERS[0],
        "SENTINELS": " ".join(f"{address}:{sentinel_port}" for address in SENTINELS),
        "REDIS_PORT": str(port),
    }
    servers, sentinels = {}, {}
    for number, address in enumerate(SERVERS):
        pod = cluster.make_redis(f"redis-{number}", address, port)
        pod.extra = {**everywhere, **_folders(pod), "ME": address}
        servers[address] = pod
    for number, address in enumerate(SENTINELS):
        pod = cluster.make("redis-sentinel", f"redis-sentinel-{number}")
        pod.listen("sentinel", address, sentinel_port)
        pod.extra = {**everywhere, **_folders(pod), "ME": address}
        sentinels[address] = pod
    try:
        made = Trio(cluster, servers, sentinels)
        for pod in servers.values():
            pod.start()
        for pod in servers.values():
            pod.wait_ready()
        # Sentinels look for replicas when they start, and again after ten seconds.
        wait_until(lambda: made.replicas(SERVERS[0]) == ["online", "online"], why="two replicas")
        for pod in sentinels.values():
            pod.start()
        for pod in sentinels.values():
            pod.wait_ready()
        for number, address in enumerate(SENTINELS):
            cluster.services[f"redis-sentinel-{number}.redis-sentinel:26379"] = f"{address}:{sentinel_port}"
        wait_until(made.is_whole, why="three servers and three Sentinels to find each other")
        assert made.master() == SERVERS[0]
        yield made
    finally:
        cluster.stop()


def _folders(pod: Pod) -> dict[str, str]:
    names = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUN_DIR": "run"}
    return {name: str(pod.folder / folder) for name, folder in names.items()}


def test_a_replica_takes_over_and_nothing_is_lost(trio: Trio) -> None:
    """The master is killed: a replica with all data becomes the master, and the old one comes back as its replica."""
    first = trio.master()
    assert first is not None
    with trio.client(first, "worker") as client:
        client.set("{farm}:seq", "41")
        assert min(client.execute_command("WAITAOF", 1, 1, 5000)) >= 1
    second = trio.fail_over()
    with trio.client(second, "worker") as client:
        assert client.incrby("{farm}:seq", 1) == 42
    trio.servers[first].start()
    wait_until(trio.is_whole, why="the old master to follow the new one")
    wait_until(lambda: {trio.get(address) for address in SERVERS} == {"42"}, why="all to have what the new one took")
    assert trio.refused() == set()


def test_a_farm_follows_the_master(trio: Trio) -> None:
    """Jobs go on while the master dies under a worker of the manifests: clients and workers find the next one."""
    settings = {"FARM_ENGINE__KIND": "synthetic", "FARM_ENGINE__SYNTHETIC_STEP_S": "0.02"}
    worker = trio.cluster.start("bloom7b1-inference", "main-0", **settings).wait_ready()
    password = trio.cluster.secrets["bloomfarm-redis"]["producer"]
    hosts = ",".join(trio.cluster.services.values())
    url = f"redis+sentinel://producer:{password}@{hosts}/bloomfarm/0"
    before = trio.master()
    assert before is not None
    with Farm(load_settings({}, redis={"url": url, "wait_replicas": 1})) as farm:
        jobs = [farm.submit(f"Tale number {n}", max_tokens=200, min_tokens=200) for n in range(16)]
        wait_until(lambda: jobs[0].status().text, why="the worker to be in the middle of something")
        trio.fail_over()
        assert [job.result(timeout=120).usage.completion_tokens for job in jobs] == [200] * 16
    worker.delete()
    trio.servers[before].start()
    wait_until(trio.is_whole, why="the old master to follow the new one")
    assert trio.refused() == set()


def test_after_an_outage_of_everything_the_last_master_leads(trio: Trio) -> None:
    """All pods die at once after a failover, and servers return before Sentinels: nobody leads with old data."""
    # The first server must not be the master, or a guess would be right.
    second = trio.fail_over() if trio.master() == SERVERS[0] else trio.master()
    assert second is not None
    with trio.client(second) as client:
        client.set("{farm}:seq", "7")
    for pod in (*trio.servers.values(), *trio.sentinels.values()):
        pod.kill()
    for pod in trio.servers.values():
        pod.start()
    wait_until(
        lambda: all("asking again" in pod.log for pod in trio.servers.values()), why="servers to wait for a Sentinel"
    )
    assert {trio.role(address) for address in SERVERS} == {"gone"}
    for pod in trio.sentinels.values():
        pod.start()
    wait_until(trio.is_whole, why="all to find each other again", timeout_s=60)
    wait_until(lambda: {trio.get(address) for address in SERVERS} == {"7"}, why="all to have the last master's data")


def test_sentinels_take_no_orders(trio: Trio) -> None:
    """Whoever reaches a Sentinel may ask it for the master, and may neither order a failover nor change anything."""
    with trio.sentinel(SENTINELS[0]) as sentinel:
        assert sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "bloomfarm")[0] in SERVERS
        for order in (
            ("SENTINEL FAILOVER", "bloomfarm"),
            ("SENTINEL RESET", "*"),
            ("SENTINEL SET", "bloomfarm", "quorum", "1"),
            ("SENTINEL REMOVE", "bloomfarm"),
            ("SENTINEL MONITOR", "other", "127.0.0.1", "1", "1"),
            ("SHUTDOWN",),
            ("SENTINEL CONFIG GET", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                sentinel.execute_command(*order)
