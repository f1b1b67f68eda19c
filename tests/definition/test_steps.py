from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime
import sys
import typing as t
import uuid

import pytest

from flask_sequence import errors
from flask_sequence.definition.registry import Step, step
from flask_sequence.definition.steps import check_step
from tests.support.definitions import RUN, CreateMessage, a_step, assign, prepared


class TestNames:
    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("", "is empty"),
            (" ", "begins or ends with a space"),
            ("assign ", "begins or ends with a space"),
            ("a/b", "reserved characters"),
            ("a[0", "reserved characters"),
            ("a]", "reserved characters"),
            ("a\nb", "cannot be shown"),
            ("a\x00", "cannot be shown"),
            ("\ud800", "cannot be shown"),
            ("x" * 101, "more than 100 characters"),
            (5, "is not a string"),
            (None, "is not a string"),
        ],
    )
    def test_a_bad_name_is_refused(self, name: t.Any, problem: str) -> None:
        with pytest.raises(errors.InvalidNameError, match=f"of step SendReceipt .*{problem}"):
            a_step(name=name)
        if name is not None:
            with pytest.raises(errors.InvalidNameError, match=problem):
                step(name=name)(lambda data: None)

    @pytest.mark.parametrize("name", ["x" * 100, "Größe", "шаг", "shop.Create message", "письмо-1"])
    def test_other_names_are_kept(self, name: str) -> None:
        assert a_step(name=name).name == name

    def test_a_long_class_name_needs_another(self) -> None:
        with pytest.raises(errors.InvalidNameError, match="another `name`"):
            a_step("X" * 101)
        assert a_step("X" * 101, name="short").name == "short"

    @pytest.mark.parametrize(
        "name",
        [
            "_check_end",
            "_interrupt",
            "_prepare",
            "attempt",
            "call",
            "data",
            "fail",
            "finish",
            "idempotency_key",
            "retry",
            "run",
        ],
    )
    def test_reserved_names(self, name: str) -> None:
        with pytest.raises(errors.ReservedNameError, match=f"^SendReceipt sets '{name}', "):
            a_step(**{name: lambda self: None})
        with pytest.raises(errors.ReservedNameError, match=f"^Mixin sets '{name}', "):
            type("SendReceipt", (type("Mixin", (), {name: 5}), Step), {})

    def test_run_says_perform(self) -> None:
        with pytest.raises(
            errors.ReservedNameError, match=r"put the work of the step in perform\(\)"
        ):
            a_step(run=lambda self: None)

    def test_an_annotation_is_no_override(self) -> None:
        class Order(t.TypedDict):
            total: int

        class Pay(Step):
            data: Order  # type: ignore[assignment]

            def perform(self) -> None:
                self.data["total"] += 1

        assert Pay.call({"total": 1}) == {"total": 2}


class TestStepClass:
    def test_init_takes_nothing(self) -> None:
        def init(self: t.Any, mailer: object) -> None: ...

        with pytest.raises(
            errors.InvalidStepError, match=r"__init__\(\) of step SendReceipt requires"
        ):
            a_step(__init__=init)

    def test_init_is_looked_at_again_when_listed(self) -> None:
        @dataclasses.dataclass
        class SendReceipt(Step):
            mailer: object

            def perform(self) -> None: ...

        with pytest.raises(
            errors.InvalidStepError, match=r"__init__\(\) of step SendReceipt requires"
        ):
            check_step(SendReceipt)

    def test_init_knows_the_run(self) -> None:
        class SendReceipt(Step):
            def __init__(self, folder: str = "out") -> None:
                self.path = f"{folder}/{self.idempotency_key}/{self.attempt}"

            def perform(self) -> None: ...

        key = uuid.uuid5(RUN.uid, "SendReceipt")
        assert t.cast(t.Any, prepared(SendReceipt)).path == f"out/{key}/3"

    def test_async_needs_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def perform(self: t.Any) -> None: ...

        monkeypatch.setitem(sys.modules, "asgiref", None)
        with pytest.raises(errors.AsyncStepError, match=r"SendReceipt is async.*flask\[async\]"):
            a_step(perform=perform)
        with pytest.raises(errors.AsyncStepError, match=r"Step perform is async"):
            step(perform)

    def test_attributes_of_the_run_exist_in_a_run_only(self) -> None:
        loose: t.Any = CreateMessage()
        for name in ("data", "run", "attempt", "idempotency_key"):
            with pytest.raises(AttributeError, match=r"CreateMessage\.call\(data\)"):
                getattr(loose, name)
        with pytest.raises(AttributeError, match=r"'CreateMessage' object has no attribute 'nme'"):
            _ = loose.nme

    def test_prepare_hands_over(self) -> None:
        data = {"name": "Joel"}
        ready = prepared(CreateMessage, data)
        assert (ready.run, ready.attempt) == (RUN, 3)
        assert ready.data is data

    def test_the_idempotency_key_is_of_the_run_and_the_step(self) -> None:
        keys = {prepared(cls).idempotency_key for cls in (CreateMessage, assign.step_class)}
        assert len(keys) == 2
        assert keys == {str(uuid.uuid5(RUN.uid, name)) for name in ("CreateMessage", "assign")}
        assert prepared(CreateMessage).idempotency_key in keys


async def in_a_task_group(self: t.Any) -> None:
    async def end() -> None:
        self.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(end())


async def in_nested_task_groups(self: t.Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(in_a_task_group(self))


async def in_a_task_that_nobody_waits_for(self: t.Any) -> None:
    async def end() -> None:
        self.end()

    task = asyncio.create_task(end())
    await asyncio.wait([task])


async def in_a_gathering(self: t.Any) -> None:
    async def end() -> None:
        self.end()

    await asyncio.gather(end(), asyncio.sleep(0), return_exceptions=True)
    raise KeyError("after it")


def in_a_group(self: t.Any) -> None:
    try:
        self.end()
    except BaseException as error:
        raise BaseExceptionGroup("wrapped", [error, ValueError()]) from None


def as_a_cause(self: t.Any) -> None:
    try:
        self.end()
    except BaseException as error:
        raise RuntimeError("wrapped") from error


def as_a_context(self: t.Any) -> None:
    try:
        self.end()
    finally:
        raise RuntimeError("wrapped")


def swallowed_before_an_error(self: t.Any) -> None:
    with contextlib.suppress(BaseException):
        self.end()
    raise ValueError("later")


def in_a_thread(self: t.Any) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(self.end).result()


def in_a_thread_that_nobody_asks(self: t.Any) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(self.end)


WRAPS = (
    in_a_task_group,
    in_nested_task_groups,
    in_a_task_that_nobody_waits_for,
    in_a_gathering,
    in_a_group,
    as_a_cause,
    as_a_context,
    swallowed_before_an_error,
    in_a_thread,
    in_a_thread_that_nobody_asks,
)


class TestInterrupts:
    def test_retry_keeps_reason_and_delay(self) -> None:
        reason = OSError("no route")
        with pytest.raises(errors.RetryInterrupt) as caught:
            prepared(CreateMessage).retry(reason, countdown=0)
        assert (caught.value.cause, caught.value.countdown) == (reason, 0)
        assert caught.value.__cause__ is reason

    def test_retry_takes_the_exception_that_is_handled(self) -> None:
        reason = OSError("no route")

        def fail_and_retry() -> None:
            try:
                raise reason
            except OSError:
                prepared(CreateMessage).retry()

        with pytest.raises(errors.RetryInterrupt) as caught:
            fail_and_retry()
        assert caught.value.cause is reason

    def test_retry_without_a_reason(self) -> None:
        with pytest.raises(errors.RetryInterrupt) as caught:
            prepared(CreateMessage).retry()
        assert (caught.value.cause, caught.value.countdown) == (None, None)

    @pytest.mark.parametrize("countdown", [-1, float("nan"), "5", True, datetime.timedelta(1)])
    def test_retry_refuses_a_delay(self, countdown: t.Any) -> None:
        with pytest.raises(
            errors.InvalidOptionError, match=r"CreateMessage: self\.retry\(countdown=\.\.\.\) takes"
        ):
            prepared(CreateMessage).retry(countdown=countdown)

    @pytest.mark.parametrize("reason", ["later", 5, OSError])
    def test_retry_refuses_a_reason(self, reason: t.Any) -> None:
        with pytest.raises(
            errors.InvalidOptionError, match=r"takes an exception.*self\.retry\(countdown=\.\.\.\)"
        ):
            prepared(CreateMessage).retry(reason)

    def test_fail_and_finish(self) -> None:
        with pytest.raises(errors.FailInterrupt) as caught:
            prepared(CreateMessage).fail(t.cast(str, OSError("no such address")))
        assert caught.value.reason == "no such address"
        with pytest.raises(errors.FinishInterrupt):
            prepared(CreateMessage).finish()

    def test_an_except_exception_lets_them_through(self) -> None:
        class SendReceipt(Step):
            def perform(self) -> None:
                try:
                    self.finish()
                except Exception:
                    self.data["swallowed"] = True

        with pytest.raises(errors.StepInterrupted, match=r"ended by self\.finish\(\)"):
            SendReceipt.call({})

    def test_what_a_step_asked_for_holds_though_it_is_swallowed(self) -> None:
        class SendReceipt(Step):
            def perform(self) -> None:
                with contextlib.suppress(BaseException):
                    self.fail("no such address")

        with pytest.raises(errors.StepInterrupted, match="no such address"):
            SendReceipt.call({})

    @pytest.mark.parametrize("way", ["finish", "fail", "retry"])
    @pytest.mark.parametrize("wrap", WRAPS, ids=lambda wrap: wrap.__name__)
    def test_it_holds_however_it_is_wrapped(self, wrap: t.Callable[..., t.Any], way: str) -> None:
        class Wrapped(Step):
            perform = wrap

            def end(self) -> None:
                getattr(self, way)(*["reason"] * (way == "fail"))

        with pytest.raises(errors.StepInterrupted, match=rf"self\.{way}\(") as caught:
            Wrapped.call({})
        assert type(caught.value.interrupt).__name__ == f"{way.title()}Interrupt"

    def test_that_of_another_step_does_not(self) -> None:
        class Inner(Step):
            def perform(self) -> None:
                self.finish()

        class Outer(Step):
            def perform(self) -> None:
                with contextlib.suppress(errors.StepInterrupted):
                    Inner.call({})
                self.data["went"] = "on"

        class Wrong(Step):
            def perform(self) -> None:
                Inner.call({})

        assert Outer.call({}) == {"went": "on"}
        with pytest.raises(errors.StepInterrupted) as caught:
            Wrong.call({})
        assert caught.value.__cause__ is caught.value.interrupt

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_the_end_of_the_process_goes_before_it(self, kind: type[BaseException]) -> None:
        class Stopped(Step):
            def perform(self) -> None:
                try:
                    self.finish()
                finally:
                    raise kind

        with pytest.raises(kind):
            Stopped.call({})


class TestCall:
    def test_works_on_a_copy(self) -> None:
        data: dict[str, t.Any] = {"order": {"lines": [1]}}

        class Add(Step):
            def perform(self) -> None:
                self.data["order"]["lines"].append(2)

        assert Add.call(data) == {"order": {"lines": [1, 2]}}
        assert data == {"order": {"lines": [1]}}

    def test_the_run_is_no_real_one(self) -> None:
        class Look(Step):
            def perform(self) -> None:
                self.data["seen"] = [self.run.id, self.run.sequence, self.run.key, self.attempt]
                self.data["uid"] = self.run.uid
                self.data["created_at"] = self.run.created_at

        before = datetime.datetime.now(datetime.UTC)
        first, second = Look.call({}), Look.call({})
        assert first["seen"] == [None, "", None, 1]
        assert first["uid"] != second["uid"]
        assert before <= first["created_at"] <= datetime.datetime.now(datetime.UTC)

    def test_data_may_be_replaced(self) -> None:
        class Replace(Step):
            def perform(self) -> None:
                self.data = {"new": True}

        assert Replace.call({"old": True}) == {"new": True}

    def test_data_is_checked_before_and_after(self) -> None:
        class Spoil(Step):
            def perform(self) -> None:
                self.data["seen"] = {1, 2}

        with pytest.raises(errors.DataError, match=r'data\["bad"\]'):
            Spoil.call({"bad": object()})
        with pytest.raises(errors.DataError, match=r'data\["seen"\]'):
            Spoil.call({})

    @pytest.mark.parametrize("way", ["retry", "fail", "finish"])
    def test_an_interrupt_is_an_error_here(self, way: str) -> None:
        class Interrupted(Step):
            def perform(self) -> None:
                match way:
                    case "retry":
                        self.retry(OSError("no route"))
                    case "fail":
                        self.fail("no such address")
                    case _:
                        self.finish()

        with pytest.raises(errors.StepInterrupted, match=rf"ended by self\.{way}\(") as caught:
            Interrupted.call({})
        assert isinstance(caught.value.interrupt, errors.Interrupt)
        assert caught.value.__cause__ is caught.value.interrupt

    def test_other_exceptions_come_out_as_they_are(self) -> None:
        class Broken(Step):
            def perform(self) -> None:
                raise OSError("no route")

        with pytest.raises(OSError, match="no route"):
            Broken.call({})

    def test_async(self) -> None:
        class Fetch(Step):
            async def perform(self) -> None:
                self.data["fetched"] = True

        assert Fetch.call({}) == {"fetched": True}

    def test_without_perform(self) -> None:
        class Base(Step):
            queue = "mail"

        with pytest.raises(errors.InvalidStepError, match=r"Base has no perform\(\): write"):
            Base.call({})
