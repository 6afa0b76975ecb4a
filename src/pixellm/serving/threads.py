"""Work that would hold the event loop up, in a few threads: images in, masks out.

Few, since each may hold an image's pixels several times over, and the engine needs the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio.to_thread

AT_ONCE = 4

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Threads:
    """At most :data:`AT_ONCE` threads."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(AT_ONCE)

    async def run(
        self,
        work: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        """Do something in a thread; waits for one."""
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._limiter)
