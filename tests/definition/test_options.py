from __future__ import annotations

import datetime
import typing as t

import pytest

from flask_sequence import errors
from flask_sequence.definition.options import CELERY_OPTIONS, OPTIONS, check_option, unknown_option
from flask_sequence.definition.registry import Step, StepOptions
from flask_sequence.definition.retry import RetryPolicy
from flask_sequence.definition.steps import check_step
from tests.support.definitions import a_step, untyped_assign, untyped_step


def options_of(**body: t.Any) -> StepOptions:
    return check_step(a_step(**body))


class TestOptions:
    def test_defaults(self) -> None:
        assert options_of() == StepOptions(None, None, None, None, RetryPolicy())

    def test_every_option_is_taken(self) -> None:
        options = options_of(
            queue="mail",
            priority=9,
            time_limit=60,
            soft_time_limit=59.5,
            autoretry_for=[OSError],
            dont_autoretry_for=(TimeoutError,),
            max_retries=0,
            retry_backoff=2,
            retry_backoff_max=30,
            retry_jitter=False,
            default_retry_delay=0,
        )
        assert options == StepOptions(
            queue="mail",
            priority=9,
            time_limit=60,
            soft_time_limit=59.5,
            retry=RetryPolicy(
                max_retries=0,
                autoretry_for=(OSError,),
                dont_autoretry_for=(TimeoutError,),
                backoff=2.0,
                backoff_max=30.0,
                jitter=False,
                default_delay=0,
            ),
        )

    @pytest.mark.parametrize(("value", "backoff"), [(True, 1.0), (False, None), (0.5, 0.5)])
    def test_backoff_is_seconds_or_a_switch(self, value: object, backoff: float | None) -> None:
        assert options_of(retry_backoff=value).retry.backoff == backoff

    @pytest.mark.parametrize(
        "option",
        [
            "queue",
            "priority",
            "time_limit",
            "soft_time_limit",
            "max_retries",
            "default_retry_delay",
        ],
    )
    def test_none_is_a_value(self, option: str) -> None:
        check_option("SendReceipt", option, None)

    def test_no_retries_limit_is_not_the_default(self) -> None:
        assert options_of(max_retries=None).retry.max_retries is None
        assert options_of().retry.max_retries == -1

    def test_are_inherited_and_the_name_is_not(self) -> None:
        class Mail(Step):
            name = "mail"
            queue = "mail"
            max_retries = 5

        class Receipt(Mail):
            max_retries = 1

            def perform(self) -> None: ...

        options = check_step(Receipt)
        assert (options.queue, options.retry.max_retries) == ("mail", 1)
        assert (Mail.name, Receipt.name) == ("mail", "Receipt")

    @pytest.mark.parametrize(
        ("option", "value", "cure"),
        [
            ("queue", "", "the name of a queue"),
            ("queue", " mail", "the name of a queue"),
            ("queue", "ma\nil", "the name of a queue"),
            ("queue", "é" * 128, "1 to 255 bytes"),
            ("queue", 5, "the name of a queue"),
            ("priority", -1, "from 0 to 9, higher is sooner"),
            ("priority", 10, "from 0 to 9, higher is sooner"),
            ("priority", 1.0, "whole number"),
            ("priority", True, "whole number"),
            ("time_limit", 0, "above 0"),
            ("time_limit", "60", "number of seconds"),
            ("time_limit", datetime.timedelta(seconds=1), "number of seconds"),
            ("time_limit", True, "None for no limit"),
            ("soft_time_limit", float("inf"), "ten years"),
            ("soft_time_limit", float("nan"), "number of seconds"),
            ("autoretry_for", OSError, "with its comma"),
            ("autoretry_for", (OSError, "TimeoutError"), "exception classes only"),
            ("autoretry_for", (int,), "exception classes only"),
            ("autoretry_for", None, "a tuple of exceptions"),
            ("autoretry_for", (errors.RetryInterrupt,), "no interrupts"),
            ("dont_autoretry_for", {OSError}, "a tuple of exceptions"),
            ("max_retries", -1, "None to retry forever"),
            ("max_retries", 2.0, "whole number"),
            ("max_retries", True, "whole number"),
            ("retry_backoff", 0, "False for no backoff"),
            ("retry_backoff", None, "False for no backoff"),
            ("retry_backoff_max", 0, "above 0"),
            ("retry_backoff_max", None, "above 0"),
            ("retry_jitter", 1, "True or False"),
            ("default_retry_delay", -0.5, "from 0"),
            ("default_retry_delay", 10**9, "ten years"),
            ("default_retry_delay", False, "None to use the backoff"),
        ],
    )
    def test_a_wrong_value_is_refused(self, option: str, value: object, cure: str) -> None:
        with pytest.raises(errors.InvalidOptionError, match=f"^SendReceipt: {option} ") as caught:
            a_step(**{option: value})
        assert cure in str(caught.value)
        with pytest.raises(errors.InvalidOptionError, match=f"^assign: {option} "):
            untyped_step(name="assign", **{option: value})(lambda data: None)

    @pytest.mark.parametrize("hard", [30, 60])
    def test_the_soft_limit_is_below_the_hard_one(self, hard: int) -> None:
        with pytest.raises(errors.InvalidOptionError, match=r"\(60 s\) must be below time_limit"):
            a_step(time_limit=hard, soft_time_limit=60)

    def test_a_property_is_no_value(self) -> None:
        with pytest.raises(errors.InvalidOptionError, match=r"SendReceipt: queue takes the name"):
            a_step(queue=property(lambda self: "mail"))

    def test_the_table_is_in_the_docstring(self) -> None:
        table = [
            line.split("``")[1] for line in (Step.__doc__ or "").splitlines() if "    ``" in line
        ]
        assert [option for option in table if option in OPTIONS] == list(OPTIONS)
        assert [option for option in OPTIONS if option not in Step.__annotations__] == []

    def test_from_mapping_knows_only_the_table(self) -> None:
        with pytest.raises(errors.UnknownOptionError, match=r"Did you mean 'queue'\?"):
            StepOptions.from_mapping("SendReceipt", {"queu": "mail"})


class TestUnknownOptions:
    @pytest.mark.parametrize("option", sorted(CELERY_OPTIONS))
    def test_one_of_celery_in_a_class(self, option: str) -> None:
        with pytest.raises(errors.UnknownOptionError) as caught:
            a_step(**{option: 5})
        assert caught.value.args == (
            f"SendReceipt: {option!r} is Celery's and has no effect here. {CELERY_OPTIONS[option]}",
        )

    @pytest.mark.parametrize("option", sorted(CELERY_OPTIONS.keys() - {"bind"}))
    def test_one_of_celery_under_step(self, option: str) -> None:
        with pytest.raises(errors.UnknownOptionError, match=f"^@step assign: '{option}' is Celery"):
            untyped_step(name="assign", **{option: 5})(lambda data: None)

    @pytest.mark.parametrize(
        ("written", "meant"),
        [("max_retry", "max_retries"), ("time_limits", "time_limit"), ("queues", "queue")],
    )
    def test_a_near_miss(self, written: str, meant: str) -> None:
        with pytest.raises(
            errors.UnknownOptionError, match=rf"no option '{written}'. Did you mean '{meant}'\?"
        ):
            a_step(**{written: 5})
        with pytest.raises(errors.UnknownOptionError, match=rf"Did you mean '{meant}'\?"):
            untyped_step(name="assign", **{written: 5})(lambda data: None)

    def test_nothing_near_names_them_all(self) -> None:
        with pytest.raises(
            errors.UnknownOptionError, match=r"The options are queue, .*, name, bind"
        ):
            untyped_step(colour="red")(untyped_assign.__wrapped__)

    def test_an_option_of_another_call(self) -> None:
        error = unknown_option("set()", "countdwn", ("key", "countdown"))
        assert error.args == ("set() has no option 'countdwn'. Did you mean 'countdown'?",)

    def test_attributes_of_the_user_are_left_alone(self) -> None:
        cls = a_step(
            recipients=("a@example.org",),
            _queue="own",
            queues=lambda self: [],
            serializer=property(lambda self: None),
            expires=lambda self: None,
        )
        assert check_step(cls) == StepOptions()

    def test_in_a_mixin(self) -> None:
        class Late:
            acks_late = True

        with pytest.raises(errors.UnknownOptionError, match=r"Late: 'acks_late' is Celery's"):
            type("SendReceipt", (Step, Late), {})
