"""A rank other than 0: loads its part, then runs the layouts that it is told. It never outlives rank 0.

A thread reads the socket, so its end is noticed at once, whatever the main thread waits for.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from multiprocessing.connection import Connection

from farm.errors import FarmError
from workers.engine.checkpoint import find_checkpoint
from workers.engine.tensor_parallel.member import Member, RankShortage
from workers.engine.tensor_parallel.wire import Setup, decode_layout


def serve(connection: Connection) -> None:
    """Load what the first message says, answer nothing or why not, and run every layout that follows.

    Any exception in a step means that the engine is lost.
    """
    packets: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, packets), name="layouts", daemon=True).start()
    setup = Setup.decode(packets.get())
    try:
        member = Member(find_checkpoint(setup.folder), setup)
    except FarmError as error:
        connection.send_bytes(str(error).encode())
        return
    except MemoryError as error:
        connection.send_bytes(f"no memory to load rank {setup.rank}: {error or 'allocation failed'}".encode())
        return
    connection.send_bytes(b"")
    member.join()
    while True:
        with contextlib.suppress(RankShortage):  # rank 0 says what follows
            member.run(decode_layout(packets.get()))


def _read(connection: Connection, packets: queue.SimpleQueue[bytes]) -> None:
    """Queue packets until the other end is gone, then end the process, whatever it is doing."""
    try:
        while True:
            packets.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)
