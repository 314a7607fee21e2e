"""Flower as people run it, and what it answers."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from farm.local.server import free_port
from tests.commands import environ
from tests.conftest import wait_until

LOGIN = "ann:opensesame"


class FlowerProcess:
    """``python -m farm.flower`` on a server. ``settings`` are FARM_ names without the prefix. login: None for none."""

    def __init__(self, redis_url: str, folder: Path, *, login: str | None = LOGIN, **settings: object) -> None:
        self.port, self.login = free_port(), login
        self.log_path, self.db = folder / "flower.log", folder / "flower.db"
        named = {"REDIS__URL": redis_url, "FLOWER__PORT": self.port, "FLOWER__DB": self.db, **settings}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error::DeprecationWarning:farm", "-m", "farm.flower"],
                env={**environ(**named), **({"FLOWER_BASIC_AUTH": login} if login else {})},
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        wait_until(self._answers, why="Flower to answer", timeout_s=60)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def ask(self, path: str, method: str = "GET", **form: object) -> tuple[int, str]:
        """Status and body of an answer."""
        body = urllib.parse.urlencode(form).encode() if method != "GET" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method=method)
        if self.login:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def tasks(self) -> dict[str, dict[str, Any]]:
        """What its API lists, by id. Needs a login."""
        status, body = self.ask("/api/tasks")
        assert status == 200, body
        found: dict[str, dict[str, Any]] = json.loads(body)
        return found

    def rows(self, search: str = "", sort_by: str = "received", direction: str = "desc") -> list[dict[str, Any]]:
        """What the page of tasks shows."""
        status, body = self.ask(
            "/tasks/datatable",
            "POST",
            **{"draw": 1, "start": 0, "length": 100, "search[value]": search},
            **{"order[0][column]": 0, "columns[0][data]": sort_by, "order[0][dir]": direction},
        )
        assert status == 200, body
        found: list[dict[str, Any]] = json.loads(body)["data"]
        return found

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.ask("/healthcheck")[0] == 200
        except OSError:
            return False
