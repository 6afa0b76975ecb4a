"""Sequences whose entries are built when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from pixellm.data.table import BadRow

T = TypeVar("T")


class Lazy(Sequence[T]):
    """Entries that ``build`` makes of numbers when asked for, not kept; a slice is a view of them.

    ``bad_rows`` are what is not among them because it can't be used.
    """

    def __init__(
        self, numbers: range, build: Callable[[int], T], bad_rows: Sequence[BadRow] = ()
    ) -> None:
        self.numbers, self.build, self.bad_rows = numbers, build, tuple(bad_rows)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Lazy[T]: ...

    def __getitem__(self, index: int | slice) -> T | Lazy[T]:
        """An entry, or some of them, as yet unbuilt."""
        if isinstance(index, slice):
            return Lazy(self.numbers[index], self.build, self.bad_rows)
        return self.build(self.numbers[index])


class LastKept(Generic[T]):
    """What ``build`` makes of a number; what it made last is kept.

    Beside functools' caches because workers on other machines get it, pickled.
    """

    def __init__(self, build: Callable[[int], T]) -> None:
        self._build = build
        self._last: tuple[int, T] | None = None

    def __call__(self, number: int) -> T:
        """The entry of a number."""
        if self._last is None or self._last[0] != number:
            self._last = (number, self._build(number))
        return self._last[1]
