"""Batches, each a transaction of its own: one that cannot be taken spoils no other."""

from __future__ import annotations

import time
import typing as t

from ..post import NoConnectionError, Post

if t.TYPE_CHECKING:
    import sqlalchemy as sa

ItemT = t.TypeVar("ItemT")
ResultT = t.TypeVar("ResultT")


class Batches(t.Generic[ItemT]):
    """Takes items in batches, of a size that the database bears.

    A batch that fails is halved, until what is to blame stands alone, and is left out. One that is
    soon done is followed by one of twice its size. The size is kept from pass to pass.

    :param post: What opens transactions.
    :param most: The most items in a batch.
    :param first: How many are in the first one.
    :param rescue: Does something else with an item that failed alone, and tells whether it did.
    """

    def __init__(
        self,
        post: Post,
        most: int,
        first: int | None = None,
        rescue: t.Callable[[ItemT, Exception], bool] | None = None,
    ) -> None:
        self._post = post
        self._most = most
        self._size = first or most
        self._rescue = rescue
        self.rest: t.Sequence[ItemT] = ()
        """What there was no time for."""
        self.refused: list[tuple[ItemT, Exception]] = []
        """What failed alone."""
        self.done: int = 0
        """How many did not."""

    def each(
        self,
        items: t.Sequence[ItemT],
        act: t.Callable[[sa.Connection, t.Sequence[ItemT]], ResultT],
    ) -> t.Iterator[ResultT]:
        """Act on items, and give what came of each batch once it is committed.

        :param items: The items.
        :param act: What is done with a batch.
        :raises NoConnectionError: If the database takes no connection.
        """
        self.rest, self.refused, self.done = items, [], 0
        is_first = True  # that one has its turn on the slowest machine, too
        while self.rest and (is_first or self._post.has_time):
            batch, began, is_first = self.rest[: self._size], time.monotonic(), False
            try:
                with self._post.connect() as connection:
                    result = act(connection, batch)
            except NoConnectionError:
                raise
            except Exception as error:
                self._size = max(len(batch) // 2, 1)
                if len(batch) == 1:
                    self._leave_out(batch[0], error)
                    self.rest = self.rest[1:]
            else:
                if time.monotonic() - began < self._post.statement_seconds / 2:
                    self._size = min(2 * self._size, self._most)
                self.rest = self.rest[len(batch) :]
                self.done += len(batch)
                yield result

    def _leave_out(self, item: ItemT, error: Exception) -> None:
        try:
            if self._rescue is not None and self._rescue(item, error):
                self.done += 1
                return
        except NoConnectionError:
            raise
        except Exception as late:
            error = late
        self.refused.append((item, error))

    def check(self) -> None:
        """Raise what was refused last, if nothing else came of it.

        :raises Exception: That error.
        """
        if self.refused and not self.done:
            raise self.refused[-1][1]
