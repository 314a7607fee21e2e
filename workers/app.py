"""The Celery app of a worker: ``celery -A workers.app worker`` or ``farm worker``.

The entry point: the one module that reads the environment at import, because Celery imports it to find ``app``.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery, bootsteps, signals
from celery.worker import control

from farm import logs
from farm.broker import make_app
from farm.errors import ModelRefused
from farm.local.discover import discover
from farm.settings import Settings, load_settings
from workers import kombu_mend, redaction, tasks
from workers.exits import EXIT_REFUSED
from workers.host import Host
from workers.stopping import Stopping


def build(settings: Settings) -> tuple[Celery, Host]:
    """An app whose worker loads the engine before it takes its first message, and what its tasks share."""
    kombu_mend.mend()
    app = make_app(settings)
    app.conf.worker_consumer = "workers.consumer:GroupingConsumer"
    host = Host(settings, app)
    tasks.register(app, host)
    app.steps["worker"].add(_step(host))

    plain_revoke = control.Panel.data["revoke"]

    # Celery keeps weak references to receivers unless told otherwise.
    @signals.task_revoked.connect(weak=False)
    def _revoked(request: Any, **_: Any) -> None:
        host.cancel([request.id])

    @signals.setup_logging.connect(weak=False)
    def _logging(**_: Any) -> None:
        logs.setup(settings.logs)
        redaction.withhold_bodies()

    @control.control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
    def _revoke(state: Any, task_id: Any, **_: Any) -> Any:
        """Revoke tasks: their jobs are cancelled, running ones too, so there is no process to terminate."""
        ids = [task_id] if isinstance(task_id, str) else list(task_id or ())
        host.cancel(ids)
        return plain_revoke(state, ids)

    return app, host


def _step(host: Host) -> type[bootsteps.StartStopStep]:
    class FarmStep(bootsteps.StartStopStep):
        """Starts the engine before Celery's consumer, and stops it after."""

        requires = ("celery.worker.components:Pool",)

        def start(self, parent: Any) -> None:
            parent.consumer.may_consume = host.may_consume
            parent.consumer.may_take_from = host.may_take_from
            if host.runner is not None:
                host.runner.on_open = parent.consumer.look_again
            stopping = Stopping(host, parent.consumer.look_again)
            stopping.install()
            # Celery's own cold way out, by SIGQUIT.
            signals.worker_shutting_down.connect(lambda **_: stopping.begin(), weak=False)
            try:
                host.start()
            except ModelRefused as error:
                sys.stderr.write(f"farm worker: model refused: {error}\n")
                raise SystemExit(EXIT_REFUSED) from None

        def stop(self, _parent: Any) -> None:
            host.stop()

        def terminate(self, _parent: Any) -> None:
            host.stop()

    return FarmStep


app, host = build(discover(load_settings()))
