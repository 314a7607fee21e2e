"""The compiled library as Python sees it: found or built, bound by ctypes, and tried before anyone relies on it.

ctypes lets go of the interpreter's lock during a call.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import structlog

from workers.engine.native.build import BuildFailed, find

VERSION = 1
"""The C interface's; ``bloom_version`` in stage.cpp must say the same."""

log = structlog.get_logger(__name__)


class Shape(ctypes.Structure):
    """``bloom::Shape`` in stage.cpp, field by field."""

    _fields_ = (
        ("vocab", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("first", ctypes.c_int32),
        ("last", ctypes.c_int32),
        ("residual_post_norm", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("spin_us", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
    )


class Library:
    """The C interface of stage.cpp. Pointers are plain addresses; lifetimes are the caller's affair."""

    def __init__(self, path: Path) -> None:
        """Bind the functions. Raises OSError if the file is no library, AttributeError if it is another one."""
        self.path = path
        loaded = ctypes.CDLL(str(path))
        pointer, number, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64

        def bind(name: str, result: type | None, *arguments: type) -> Callable[..., int]:
            function = getattr(loaded, f"bloom_{name}")
            function.restype, function.argtypes = result, arguments
            bound: Callable[..., int] = function
            return bound

        self.version = bind("version", number)()
        self.width = bind("width", number)()
        self.create = bind("create", pointer, ctypes.POINTER(Shape), pointer, number)
        self.destroy = bind("destroy", None, pointer)
        self.set_embedding = bind("set_embedding", None, pointer, pointer)
        self.set_norm = bind("set_norm", number, pointer, wide, pointer, pointer)
        self.set_linear = bind("set_linear", number, pointer, wide, number, pointer, pointer)
        self.set_head = bind("set_head", number, pointer, pointer)
        forward = (pointer, pointer, wide, pointer, wide, pointer, wide, pointer, wide, pointer)
        self.forward = bind("forward", number, *forward)


@functools.cache
def load() -> Library | None:
    """The library if it can be had here and computes what torch computes; None, with the reason logged, if not."""
    try:
        library = open_library()
    except BuildFailed as failed:
        log.warning("native_stage_unavailable", reason=str(failed))
        return None
    # Here because the test runs a stage, and a stage is bound by this module.
    from workers.engine.native.selftest import mismatch

    if wrong := mismatch(library):
        log.warning("native_stage_refused", reason=wrong, path=str(library.path))
        return None
    return library


def open_library() -> Library:
    """Find or build the library and bind it; one that does not load is built anew, once. Raises BuildFailed."""
    found = find()
    try:
        return _bind(found.path)
    except (OSError, AttributeError) as error:
        if found.compiled:
            raise BuildFailed(f"{found.path} does not load: {error}") from None
    path = find(fresh=True).path
    try:
        return _bind(path)
    except (OSError, AttributeError) as error:
        raise BuildFailed(f"{path} does not load: {error}") from None


def _bind(path: Path) -> Library:
    library = Library(path)
    if library.version != VERSION:
        raise AttributeError(f"its interface is {library.version}, not {VERSION}")
    return library
