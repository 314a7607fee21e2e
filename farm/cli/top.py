"""``farm top``: the farm as it works, on one screen, until somebody quits."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.live import Live

from farm.cli.help import Command, commands, examples
from farm.cli.options import Json, reachable_settings
from farm.cli.output import emit, stdout
from farm.cli.top_page import Screen, draw
from farm.errors import InvalidRequest, ServerUnreachable
from farm.ledger.glance import Glance, Paces, glance, to_dict
from farm.ledger.jobs import Jobs

MOST_JOBS = 100  # of those that ended last: more than a terminal has lines
HISTORY = 400
FIRST_S = 1.0  # a pace needs two readings; the second comes so soon
QUIT, ESCAPE = "qQ", "\x1b"
# An arrow or a function key: Escape and more.
_SEQUENCE = re.compile(r"\x1b(?:\[[\d;]*[A-Za-z~]|O[A-Z])")
app = commands()


@app.command(
    cls=Command,
    epilog=examples("farm top", "farm top --interval 5", "farm top --once --json | jq .tokens_per_s"),
)
def top(
    interval: Annotated[float, typer.Option(min=0.2, max=60, metavar="S", help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look for a second, print what was seen and end.")] = False,
    as_json: Json = False,
) -> None:
    """Watch the farm work, on one screen.

    Queues, workers, tokens per second, the jobs that ended last, what had to be put back. q or Ctrl-C quits. Without a
    terminal it needs --once, or --json: a line of JSON at each look.
    """
    if not once and not as_json and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidRequest("top", "needs a terminal; give --once, or --json for a line at each look")
    jobs = Jobs(reachable_settings())
    watch = Watch(jobs)
    try:
        if once:
            _once(watch, as_json)
        elif as_json:
            _lines(watch, interval)
        else:
            _live(watch, interval)
    except KeyboardInterrupt:
        pass  # that is how one quits
    finally:
        jobs.client.close()


@dataclass
class Watch:
    """What was read of a farm so far."""

    jobs: Jobs
    paces: Paces = field(default_factory=Paces)
    tokens: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    waiting: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    seen: Glance | None = None

    def look(self, recent: int = MOST_JOBS) -> Glance:
        """Read again. Raises ServerUnreachable."""
        is_first = self.seen is None
        self.seen = glance(self.jobs, recent)
        self.paces.see(self.seen)
        if not is_first:
            self.tokens.append(self.paces.tokens_per_s)
        self.waiting.append(self.seen.waiting)
        return self.seen

    def screen(self, problem: str = "", *, is_live: bool = True) -> Screen:
        """What to draw. There must have been a look."""
        assert self.seen is not None
        return Screen(self.jobs.where, self.seen, self.paces, self.tokens, self.waiting, problem, is_live)

    def document(self) -> dict[str, object]:
        """The same for programs."""
        assert self.seen is not None
        return {"server": self.jobs.where, **to_dict(self.seen, self.paces)}


def _once(watch: Watch, as_json: bool) -> None:
    watch.look()
    time.sleep(FIRST_S)
    watch.look(10)
    if as_json:
        emit(watch.document())
        return
    out = stdout()
    out.print(draw(watch.screen(is_live=False), min(out.width, 140), 60))


def _lines(watch: Watch, interval_s: float) -> None:
    watch.look()
    while True:
        time.sleep(interval_s)
        watch.look(10)
        emit(watch.document())


def _live(watch: Watch, interval_s: float) -> None:
    watch.look()
    out = stdout()
    with _keyboard() as keys, Live(console=out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        wait_s, problem = min(FIRST_S, interval_s), ""
        while True:
            live.update(draw(watch.screen(problem), out.width, out.height), refresh=True)
            if _pressed(keys, wait_s):
                return
            wait_s = interval_s
            try:
                watch.look()
                problem = ""
            except ServerUnreachable as error:
                problem = f"trying again: {error}"


@contextlib.contextmanager
def _keyboard() -> Iterator[int]:
    """The terminal giving each key at once and unseen, until the block ends, however it does. Yields its descriptor."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(descriptor)
        _without_suspending(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _without_suspending(descriptor: int) -> None:
    """Ctrl-Z would leave the shell on our screen."""
    attributes = termios.tcgetattr(descriptor)
    attributes[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(descriptor, termios.TCSADRAIN, attributes)


def _pressed(descriptor: int, wait_s: float) -> bool:
    """Wait so long, or until a key that quits. A terminal that is gone counts as one."""
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], left_s)
        if not ready:
            return False
        typed = os.read(descriptor, 64).decode(errors="replace")
        if not typed or typed == ESCAPE or any(key in QUIT for key in _SEQUENCE.sub("", typed)):
            return True
    return False
