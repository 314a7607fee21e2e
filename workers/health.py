"""Whether this worker lives, and whether it can take jobs: what the probes, the heartbeat file and people are told.

It lives while its threads come round and its engine makes progress. A worker without an engine or a server lives: to
start it again would mend neither, and both it tries again by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.settings import Settings

if TYPE_CHECKING:
    from workers.host import Host

SLOW_S = 60.0  # any call of the ledger or the broker is over by then, unless its time limit was raised
ENGINE_MARGIN_S = 10.0  # the watchdog has killed a hung engine by then, if the watchdog works


class Health:
    """Reasons against this worker; empty text means that there is none."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self._host = host
        self._slow_s = max(SLOW_S, 20 * settings.redis.timeout_s)
        self._engine_s = settings.engine.watchdog_s + ENGINE_MARGIN_S

    def why_dead(self) -> str:
        """What will not mend by itself."""
        runner = self._host.runner
        threads = {"beat": self._host.beat.silent_s, "keeper": self._host.keeper.silent_s}
        for name, silent_s in threads.items():
            if silent_s > self._slow_s:
                return f"{name} silent for {silent_s:.0f} s"
        if runner is not None and runner.lives.silent_s > self._engine_s:
            return f"engine silent for {runner.lives.silent_s:.0f} s, and its watchdog too"
        return ""

    def why_unready(self) -> str:
        """Why no job can be taken now."""
        host = self._host
        if host.is_stopping:
            return "draining"
        if host.runner is not None and host.runner.trouble:
            return host.runner.trouble
        if not host.beat.is_answered:
            return "server unreachable"
        return "" if host.is_known else "starting"
