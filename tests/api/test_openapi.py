"""What /openapi.json and /docs say is true, works when it is pasted, and needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from farm.ledger.jobs import Jobs
from farm.local.environ import with_values
from farm.settings import Settings
from tests.api.conftest import WEB, Serve, Served, serving
from tests.conftest import tool
from tests.farmhand import Farmhand

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rest.md"
HERE = "http://127.0.0.1:8000"


@pytest.fixture
def served(api_settings: Settings, jobs: Jobs) -> Iterator[Served]:
    """An API that wants keys, and a worker."""
    with serving(with_values(api_settings, api={"keys": "required"})) as api, Farmhand(api_settings):
        yield api


def test_every_answer_is_as_documented(served: Served, key: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """schemathesis sends what fits the document and what does not, in sequences too: no 5xx, no undocumented status,
    header or body; what does not fit is refused, what fits is not; nothing is open without a key.
    """
    [(name, value)] = key("ann").items()
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "schemathesis.toml"), "run"]
    done = subprocess.run(
        [*command, f"{served.url}/openapi.json", "--header", f"{name}: {value}", "--seed", "1", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout[-5_000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None
    assert int(tested[1]) >= 19


async def test_every_operation_is_described(web: httpx2.AsyncClient) -> None:
    """Each has a summary, each of its answers an example or no body, each parameter and field a type."""
    document = (await web.get("/openapi.json")).json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len(operations) == 20
    for operation in operations:
        assert operation["summary"]
        for status, answer in operation["responses"].items():
            for body in answer.get("content", {}).values():
                assert "example" in body or status == "200", (operation["operationId"], status)
    fields = document["components"]["schemas"]["Request"]["properties"]
    assert all("description" in field for name, field in fields.items() if name != "metadata"), fields


async def test_the_docs_need_no_network(web: httpx2.AsyncClient) -> None:
    """The page and all that it loads come from this server, and the browser is told to ask no other."""
    page = await web.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", "")
    for path in re.findall(r'(?:src|href)="([^":]+)"', page.text):
        asset = await web.get(f"/{path}")
        assert (asset.status_code, len(asset.content) > 50) == (200, True), path
    assert "bf_" not in page.text


@pytest.mark.parametrize("keys", ["local", "required"])
def test_examples_of_the_docs_work_when_pasted(
    api_settings: Settings, jobs: Jobs, key: Callable[..., dict[str, str]], keys: str
) -> None:
    """The document's shell examples name the server that shows them, and a key if one is needed."""
    secret = key("ann")["Authorization"].removeprefix("Bearer ")
    with serving(with_values(api_settings, api={"keys": keys})) as api, Farmhand(api_settings):
        text = WEB.get(f"{api.url}/openapi.json").json()["info"]["description"]
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        assert len(blocks) == 2
        for block in blocks:
            assert api.url in block
            assert ("FARM_API_KEY" in block) == (keys == "required")
            said = run(block, secret)
            assert '"state":"succeeded"' in said


def test_examples_of_the_page_work_when_pasted(serve: Serve, api_settings: Settings, jobs: Jobs) -> None:
    """Every curl of docs/rest.md, in its order."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    code = [line.removeprefix("    ") for line in lines if line.startswith("    ")]
    script = "\n".join(line for line in code if re.match(r"JOB=|curl -sS|  -d ", line))
    assert script.count("curl -sS") == 11
    with serve() as api, Farmhand(api_settings):
        said = run(script.replace(HERE, api.url), "")
    assert said.count('"state":"queued"') == 3
    assert '"state":"succeeded"' in said
    assert "event: end" in said
    assert '"error":{' not in said


def run(script: str, secret: str) -> str:
    """What a shell prints; it must not fail."""
    tool("curl", "curl")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "FARM_API_KEY": secret},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
