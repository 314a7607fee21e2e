"""The parts of a local farm that are reached by HTTP, Flower and the API: each on a port that is free at its start."""

from __future__ import annotations

import contextlib
import importlib.util
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from farm.listening import url_of
from farm.local.environ import child_environ, with_values
from farm.local.parts import Program
from farm.local.server import free_port
from farm.rest import is_installed
from farm.settings import Settings

FLOWER_STOP_S = 5.0  # it saves what it has seen
STOP_MARGIN_S = 2.0


@dataclass
class Site:
    """One of them. ``name`` is its group of settings too."""

    name: Literal["flower", "api"]
    module: str
    probe: str
    """The path that answers 200 when it is ready."""
    is_installed: Callable[[], bool]
    rank: int
    stop_s: float
    url: str | None = None
    metrics_port: int = 0

    def part(self, settings: Settings, log_path: Path) -> Program:
        """What the supervisor starts."""
        return Program(
            self.name,
            self.module,
            log_path,
            lambda: self._environ(settings),
            rank=self.rank,
            stop_s=self.stop_s,
            is_essential=False,
        )

    def answers(self) -> bool:
        """Whether it is ready."""
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}{self.probe}", timeout=1) as answer,  # noqa: S310
        ):
            return bool(answer.status == 200)
        return False

    def _environ(self, settings: Settings) -> dict[str, str]:
        """Its environment, with a port that is free now."""
        wanted = settings.api if self.name == "api" else settings.flower
        port = free_port(wanted.port)
        self.url = url_of(wanted.host, port)
        changed = with_values(settings, **{self.name: {"port": port}})
        if self.name == "api":
            self.metrics_port = free_port(self.metrics_port)
            changed = with_values(changed, telemetry={"port": self.metrics_port})
        return child_environ(changed)


def flower_site() -> Site:
    """Flower. It ends after the workers, whose last events it shows."""
    return Site(
        "flower",
        "farm.flower",
        "/healthcheck",
        lambda: importlib.util.find_spec("flower") is not None,
        rank=1,
        stop_s=FLOWER_STOP_S,
    )


def api_site(settings: Settings) -> Site:
    """The API. It ends with the workers: whoever follows a job is told at once to come back."""
    return Site("api", "api", "/livez", is_installed, rank=0, stop_s=settings.api.stop_s + STOP_MARGIN_S)
