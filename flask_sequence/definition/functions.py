"""@step: a function as a step."""

from __future__ import annotations

import functools
import inspect
import reprlib
import typing as t

from ..errors import InvalidOptionError, InvalidStepError
from .callables import check_function
from .habits import AT_STEP, not_here
from .options import OPTIONS, check_name, unknown_option
from .steps import Step

P = t.ParamSpec("P")
R = t.TypeVar("R")


class FunctionStep(t.Generic[P, R]):
    """A step written as a function; made by :func:`step`, and still callable as written.

    :param function: The function.
    :param name: The step's name; ``None`` uses the function's.
    :param bind: Whether the function takes the step as an argument before the data.
    :param options: The options, as on a class; :class:`Step` lists them.
    :raises DefinitionError: One of its subclasses, if the function, its name or an option is wrong.

    .. versionadded:: 0.1
    """

    name: str
    """The step's name."""
    step_class: type[Step[t.Any]]
    """The :class:`Step` class made for it."""

    def __init__(
        self,
        function: t.Callable[P, R],
        *,
        name: str | None = None,
        bind: bool = False,
        options: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.name = _function_name(function, name)
        self.step_class = _class_for(function, self.name, bind, options or {})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function as it was written."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<step {self.name}>"

    if not t.TYPE_CHECKING:  # pragma: no branch

        def __getattr__(self, name: str) -> t.NoReturn:
            own = self.__dict__.get("name")
            if name in AT_STEP:
                raise not_here(f"The step {own}", name, AT_STEP[name].format(name=own))
            problem = f"The step {own} has no attribute {name!r}"
            raise AttributeError(problem, name=name, obj=self)

        def __or__(self, other: object) -> t.NoReturn:
            raise InvalidStepError(
                "Steps are not chained by `|` or chain(): list them in `steps` of a sequence, as in"
                f" steps = ({self.name}, ...)."
            )

        __ror__ = __or__

    def call(self, data: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Run the step in place; see :meth:`Step.call`.

        :param data: The data for the step.
        :return: The data as the step left it.
        :raises DataError: If the data, before or after the step, cannot be stored.
        :raises StepInterrupted: If the step called ``retry()``, ``fail()`` or ``finish()``.

        .. versionadded:: 0.1
        """
        return t.cast(dict[str, t.Any], self.step_class.call(data))


class StepKeywords(t.TypedDict, total=False):
    """What :func:`step` takes: the options of :class:`Step`, ``name`` and ``bind``."""

    name: str | None
    bind: bool
    queue: str | None
    priority: int | None
    time_limit: float | None
    soft_time_limit: float | None
    autoretry_for: tuple[type[BaseException], ...]
    dont_autoretry_for: tuple[type[BaseException], ...]
    max_retries: int | None
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    default_retry_delay: float | None


@t.overload
def step(function: t.Callable[P, R], /) -> FunctionStep[P, R]: ...
@t.overload
def step(
    **options: t.Unpack[StepKeywords],
) -> t.Callable[[t.Callable[P, R]], FunctionStep[P, R]]: ...
def step(function: t.Any = None, /, **options: t.Any) -> t.Any:
    """Turn a function ``f(data)`` into a step: ``@step`` or ``@step(queue="mail", max_retries=3)``.

    :param function: The function; it stays callable as written.
    :param options: The options of :class:`Step`, and two more: ``name``, the step's name instead
        of the function's, and ``bind=True`` for ``f(self, data)``, where ``self`` is the
        :class:`Step`.
    :return: The :class:`FunctionStep`, or the decorator that makes it.
    :raises DefinitionError: One of its subclasses, if the function, its name or an option is wrong.

    .. versionadded:: 0.1
    """
    if function is None:
        return functools.partial(step, **options)
    name, bind = options.pop("name", None), options.pop("bind", False)
    return FunctionStep(function, name=name, bind=bind, options=options)


def _function_name(function: object, name: str | None) -> str:
    if isinstance(function, FunctionStep):
        raise InvalidStepError(f"{function.name} is a step already: write @step once.")
    if isinstance(function, type):
        raise InvalidStepError(
            f"@step is for functions, and {function.__name__} is a class: inherit from Step."
        )
    if not callable(function):
        raise InvalidStepError(
            f"@step was given {reprlib.repr(function)}, which is not a function; options have"
            ' names, as in @step(queue="mail").'
        )
    own = getattr(function, "__name__", "<lambda>")
    if name is None and own == "<lambda>":
        raise InvalidStepError(
            f"{reprlib.repr(function)} has no name that can be stored: write it as a function"
            ' with `def`, or give it one, as in step(name="assign")(...).'
        )
    return check_name(f"@step {own}", own if name is None else name)


def _class_for(
    function: t.Callable[..., t.Any], name: str, bind: object, options: t.Mapping[str, t.Any]
) -> type[Step[t.Any]]:
    if not isinstance(bind, bool):
        raise InvalidOptionError(f"@step {name}: bind takes True or False; it is {bind!r}.")
    for option in options:
        if option not in OPTIONS:
            raise unknown_option(f"@step {name}", option, (*OPTIONS, "name", "bind"))
    own = name if name.isidentifier() else "f"
    bound = f"def {own}(self, data)"
    cure = bound if bind else f"def {own}(data)`, or under @step(bind=True) `{bound}"
    check_function(f"@step {name}", function, 2 if bind else 1, cure)
    body = {
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": getattr(function, "__qualname__", name),
        "name": name,
        "_data_name": "data",
        "perform": _perform_of(function, bind),
    }
    return t.cast("type[Step[t.Any]]", type(name, (Step,), body | dict(options)))


def _perform_of(function: t.Callable[..., t.Any], bind: bool) -> t.Callable[..., t.Any]:
    def arguments(self: Step[t.Any]) -> tuple[t.Any, ...]:
        return (self, self.data) if bind else (self.data,)

    def perform(self: Step[t.Any]) -> t.Any:
        return function(*arguments(self))

    async def perform_async(self: Step[t.Any]) -> t.Any:
        return await function(*arguments(self))

    return perform_async if inspect.iscoroutinefunction(function) else perform
