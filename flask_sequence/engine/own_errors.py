"""Errors of the runs' own database, on the step's connection or ours: only they are free."""

from __future__ import annotations

import sqlalchemy as sa

from ..rows import driver_errors

_OWN = "flask_sequence_own"


def mark_own(error: BaseException) -> None:
    """Note that an error is one of the runs' own database.

    :param error: The error.
    """
    if isinstance(error, (sa.exc.DBAPIError, sa.exc.TimeoutError)):
        error.__dict__[_OWN] = True


def is_free(error: BaseException) -> bool:
    """Tell whether an error uses up no retry: the runs' own database asks for another try.

    Errors of any other engine are the step's, whatever they say.

    :param error: The error.
    """
    return _OWN in error.__dict__ and driver_errors.is_free(error)


class own_errors:  # noqa: N801
    """Mark what is raised here as an error of the runs' own database."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if error is not None:
            mark_own(error)
