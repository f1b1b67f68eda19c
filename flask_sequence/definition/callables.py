"""What a step's function must look like, and what it may give back."""

from __future__ import annotations

import inspect
import typing as t

from ..errors import InvalidStepError


def check_function(where: str, function: object, arguments: int, shape: str) -> None:
    """Refuse a function that the runner could not call, or whose body would not run.

    :param where: What the function is, for the error.
    :param function: The function.
    :param arguments: How many arguments it will get, by position.
    :param shape: How it should be written.
    :raises InvalidStepError: It is no function, a generator, or takes other arguments.
    """
    if not callable(function):
        raise InvalidStepError(f"{where} is no function; write `{shape}`.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidStepError(
            f"{where} has a `yield` and would never run. For a long loop keep the cursor in the"
            " data and commit the session: that is a checkpoint."
        )
    if not takes(function, arguments):
        raise InvalidStepError(f"{where} must be `{shape}`: it gets its input as the data.")


def takes(function: t.Callable[..., t.Any], arguments: int) -> bool:
    """Tell whether a function can be called with some arguments, by position.

    :param function: The function.
    :param arguments: How many.
    """
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:  # Functions written in C may not tell their signature.
        return True
    return True


def check_result(where: str, result: object) -> None:
    """Refuse what ``perform()`` gave back if its body has not run yet.

    A wrapper that is no ``async def`` itself hides that what it wraps is one.

    :param where: The step's name, for the error.
    :param result: What ``perform()`` returned.
    :raises InvalidStepError: It is a coroutine or a generator.
    """
    if inspect.iscoroutine(result):
        result.close()
    elif not (inspect.isgenerator(result) or inspect.isasyncgen(result)):
        return
    raise InvalidStepError(
        f"perform() of step {where} gave back a {type(result).__name__} whose body has not run;"
        " write it, and every decorator around it, as plain `def` or as `async def`."
    )
