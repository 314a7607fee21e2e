"""Flower's web server with the farm's state behind it, and without the pages that would show a completion."""

from __future__ import annotations

import atexit
import logging
import signal
from pathlib import Path
from typing import Any

from celery import Celery
from flower.api import BaseApiHandler
from flower.app import Flower
from flower.command import apply_env_options, extract_settings, setup_logging, sigterm_handler
from flower.options import default_options
from flower.urls import settings as web_settings
from flower.views import BaseHandler
from flower.views.tasks import TASK_COLUMNS
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, authenticated

from farm.flower.options import COLUMNS, defaults, enforced
from farm.flower.state import FarmEvents, FarmInspector
from farm.settings import FlowerSettings

OUR_STYLE = "\n.tasks-page table { font-size: 0.8125rem; } .tasks-page td { white-space: nowrap; }\n"
WITHHELD = r"/api/task/(?:result|apply|abort)/.+"


class Withheld(BaseApiHandler):  # type: ignore[misc]
    """Answers in place of what would show a completion, or act behind the ledger's back."""

    @authenticated
    def get(self) -> None:
        raise HTTPError(
            403,
            "Flower shows no completion and runs no task: GET /v1/jobs/ID of the farm's API and farm status ID show "
            "one; to end a job, revoke its task",
        )

    post = get


class Style(BaseHandler):  # type: ignore[misc]
    """Flower's style sheet and our line: all columns fit 1,280 pixels."""

    def get(self) -> None:
        sheet = Path(web_settings["static_path"], "css", "flower.css").read_text(encoding="utf-8")
        self.set_header("Content-Type", "text/css")
        self.set_header("Cache-Control", "max-age=3600")
        self.write(sheet + OUR_STYLE)


def run(app: Celery, settings: FlowerSettings, db: Path) -> None:
    """Serve until terminated; what was seen is saved then, and now and then before."""
    options = default_options
    _set(options, defaults())
    apply_env_options()
    _set(options, enforced(settings))
    TASK_COLUMNS.update(COLUMNS)
    extract_settings()
    setup_logging()
    # Below this level Flower logs the arguments of a task that somebody sends through its API.
    logging.getLogger("flower.api").setLevel(logging.INFO)
    loop = IOLoop.instance()
    events = FarmEvents(
        app, loop, db, max_tasks=settings.max_tasks, max_workers=settings.max_workers, save_s=settings.save_s
    )
    flower = Flower(capp=app, options=options, events=events, io_loop=loop, **web_settings)
    flower.inspector = FarmInspector(loop, app, options.inspect_timeout / 1000)
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    flower.add_handlers(".*", [(prefix + WITHHELD, Withheld), (prefix + "/static/css/flower.css", Style)])
    atexit.register(flower.stop)
    signal.signal(signal.SIGTERM, sigterm_handler)
    flower.start_http_server()
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        return


def _set(options: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(options, name, value)
