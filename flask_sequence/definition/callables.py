"""What a step's function must look like, and what it may give back."""

from __future__ import annotations

import functools
import inspect
import types
import typing as t

from ..errors import InvalidStepError


class Perform:
    """``perform()`` of a step class, which is called on a step, and not by hand on the class.

    :param function: The function as it was written.
    """

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: t.Any, owner: type) -> t.Any:
        if instance is not None:
            return types.MethodType(self.function, instance)

        @functools.wraps(self.function)
        def called_on_the_class(*args: t.Any, **kwargs: t.Any) -> t.Any:
            if not (args and isinstance(args[0], owner)):
                raise InvalidStepError(
                    f"{owner.__name__}.perform() is called by a worker, and gets no data as an"
                    f" argument: {owner.__name__}.call(data) runs it in place."
                )
            return self.function(*args, **kwargs)

        return called_on_the_class


def written(cls: type, name: str) -> t.Any:
    """Give a method of a class as it was written.

    :param cls: The class.
    :param name: Its name.
    """
    found = inspect.getattr_static(cls, name)
    return found.function if isinstance(found, Perform) else getattr(cls, name)


def check_function(where: str, function: object, arguments: int, shape: str) -> None:
    """Refuse a function that the runner could not call, or whose body would not run.

    :param where: What the function is, for the error.
    :param function: The function.
    :param arguments: How many arguments it will get, by position.
    :param shape: How it should be written.
    :raises InvalidStepError: It is no function, a generator, or takes other arguments.
    """
    if not callable(function):
        raise InvalidStepError(f"{where} is not a function; write `{shape}`.")
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
        f"perform() of step {where} returned a {type(result).__name__} whose body has not run;"
        " write it, and every decorator around it, as plain `def` or as `async def`."
    )
