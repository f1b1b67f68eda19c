"""Durable multi-step background jobs for Flask, on your Celery workers and SQL database.

.. code-block:: python

    class SendReceipt(Step):
        max_retries = 5

        def perform(self):
            send(self.data["email"])

    class ContactForm(BaseSequence):
        steps = (CreateMessage, AssignMember, SendReceipt)

    ContactForm.start(email="joel@example.com")
    db.session.commit()      # the run starts after this commit; on rollback there is no run
"""

from .definition.functions import FunctionStep, step
from .definition.steps import RunInfo, Step
from .errors import (
    AsyncStepError,
    BusyError,
    ConfigError,
    DataError,
    DataTooLargeError,
    DefinitionError,
    DuplicateSequenceError,
    DuplicateStepError,
    EmptySequenceError,
    InvalidNameError,
    InvalidOptionError,
    InvalidStepError,
    KeyBusyError,
    MoveRefusedError,
    ReadOnlyError,
    ReservedNameError,
    RunNotFoundError,
    SequenceError,
    SetupError,
    StepInterrupted,
    UnknownOptionError,
    UnknownSequenceError,
)
from .extension import Sequence, celery_app
from .rows.models import SequenceRun, StepRun
from .sequence import BaseSequence
from .status import Progress, Status, StepProgress, StepState, StepStatus

__version__ = "0.1.0"

__all__ = [
    "AsyncStepError",
    "BaseSequence",
    "BusyError",
    "ConfigError",
    "DataError",
    "DataTooLargeError",
    "DefinitionError",
    "DuplicateSequenceError",
    "DuplicateStepError",
    "EmptySequenceError",
    "FunctionStep",
    "InvalidNameError",
    "InvalidOptionError",
    "InvalidStepError",
    "KeyBusyError",
    "MoveRefusedError",
    "Progress",
    "ReadOnlyError",
    "ReservedNameError",
    "RunInfo",
    "RunNotFoundError",
    "Sequence",
    "SequenceError",
    "SequenceRun",
    "SetupError",
    "Status",
    "Step",
    "StepInterrupted",
    "StepProgress",
    "StepRun",
    "StepState",
    "StepStatus",
    "UnknownOptionError",
    "UnknownSequenceError",
    "celery_app",
    "step",
]
