"""The farm over TLS: one server, and a service that Sentinels watch over."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from farm import Farm, ServerUnreachable
from farm.broker import make_app
from farm.ledger.jobs import Jobs
from farm.local.server import HOST, EmbeddedServer, free_port
from farm.settings import load_settings
from tests.conftest import tool, wait_until
from tests.workers import WorkerProcess


@dataclass
class Secured:
    """A server and a Sentinel that speak TLS under one certificate authority."""

    server: EmbeddedServer
    ca: Path
    port: int
    sentinel_port: int

    def url(self, **options: str) -> str:
        """The server's own URL."""
        given = {"ssl_ca_certs": str(self.ca), **options}
        return f"rediss://:{self.server.password}@{HOST}:{self.port}/0?{_query(given)}"

    @property
    def watched_url(self) -> str:
        """What clients that follow the master are given."""
        return (
            f"rediss+sentinel://:{self.server.password}@{HOST}:{self.sentinel_port}/barn?"
            f"{_query({'ssl_ca_certs': str(self.ca), 'sentinel_password': 'watch'})}"
        )


def _query(options: dict[str, str]) -> str:
    return "&".join(f"{name}={text}" for name, text in options.items())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Debian's Redis, which is built with TLS, with certificates made for the occasion."""
    folder, binary = tmp_path_factory.mktemp("tls"), tool("redis-server", "redis-server")
    openssl = str(tool("openssl", "openssl"))
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=barn"
    files = ["-keyout", str(key), "-out", str(certificate), "-addext", f"subjectAltName=IP:{HOST}"]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    tls = {
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
        "tls-replication": "yes",
    }
    port, sentinel_port = free_port(), free_port()
    server = EmbeddedServer(folder / "server", binary=binary, options={**tls, "tls-port": str(port)})
    server.start()
    sentinel = folder / "sentinel.conf"
    sentinel.write_text(
        "".join(f"{name} {value}\n" for name, value in tls.items())
        + f"port 0\ntls-port {sentinel_port}\nbind {HOST}\nrequirepass watch\n"
        f"sentinel monitor barn {HOST} {port} 1\nsentinel auth-pass barn {server.password}\n"
    )
    with (folder / "sentinel.log").open("wb") as log:
        watching = subprocess.Popen([str(binary), str(sentinel), "--sentinel"], stdout=log, stderr=log)
    yield Secured(server, certificate, port, sentinel_port)
    watching.kill()
    watching.wait()
    server.kill()


@pytest.mark.parametrize("is_watched", [False, True], ids=["rediss", "rediss+sentinel"])
def test_a_job_and_a_celery_result_travel_over_tls(secured: Secured, tmp_path: Path, is_watched: bool) -> None:
    """Ledger, broker, result backend and Sentinels are reached over TLS, certificates checked."""
    settings = load_settings(redis={"url": secured.watched_url if is_watched else secured.url()})
    jobs = Jobs(settings)

    def answers() -> bool:
        try:
            return bool(jobs.models() is not None)
        except ServerUnreachable:
            return False

    wait_until(answers, why="the server")
    with WorkerProcess(jobs, tmp_path, "w1") as worker, Farm(settings) as farm, make_app(settings) as app:
        worker.wait_ready()
        assert farm.generate("hello", max_tokens=3, timeout=30).finish_reason == "length"
        result = app.send_task("farm.generate", kwargs={"prompt": "plain", "max_tokens": 3}).get(timeout=30)
        assert result["state"] == "succeeded"
    jobs.client.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(secured: Secured) -> None:
    """Without the authority's certificate the server is not trusted, unless that is asked for."""
    bare = secured.url().partition("?")[0]
    with Farm(url=bare) as farm, pytest.raises(ServerUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
        farm.submit("hello")
    with Farm(url=f"{bare}?ssl_cert_reqs=none&ssl_check_hostname=false") as farm:
        assert farm.submit("hello").id
