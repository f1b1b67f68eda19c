"""How far the run of a message has come. A page says of it what is true, whatever its state."""

from __future__ import annotations

import typing as t

from flask_sequence import SequenceRun, Status, StepProgress, StepState, StepStatus

from .models import reference_of
from .sequences import ContactForm


class Words(t.NamedTuple):
    """What a visitor is told while a run is in a state."""

    step: str
    """Beside the step that the run is at."""
    lead: str
    """Above all steps."""


LABELS = {
    "CreateMessage": "Save your message",
    "AssignMember": "Find the right person",
    "NotifyMember": "Notify them",
    "SendReceipt": "Send you a receipt",
}
STUCK = Words(
    "We need to look into this",
    "We have your message. Something is stuck on our side: our team sees it in its inbox, and you"
    " need not write again.",
)
DELETED = "This message was dealt with some time ago. Its steps are no longer kept."
WORDS = {
    "queued": Words(
        "Queued",
        "We have your message, and it is in the queue. You can close this page: the rest happens"
        " without it.",
    ),
    "running": Words(
        "In progress",
        "We have your message and are working on it. You can close this page: the rest happens"
        " without it.",
    ),
    "retrying": Words(
        "Trying again soon",
        "We have your message. A step did not work at first and will be tried again. You can close"
        " this page, and need not write again.",
    ),
    "paused": Words("On hold", "We have your message. The rest is on hold and will go on later."),
    "failed": STUCK,
    "blocked": STUCK,
    "cancelled": Words(
        "Stopped",
        "Our team has stopped this. If you still wait for an answer, please write again.",
    ),
    "finished": Words("Done", "All done. A receipt is on its way to {email}."),
}


def state_of(run: SequenceRun) -> str:
    """Return the run's status, and for *waiting* its reason; a key of ``WORDS``.

    :param run: The run.
    """
    if run.status is Status.WAITING:
        return "retrying" if run.attempt else "queued"
    return str(run.status)


def steps_done(run: SequenceRun) -> int:
    """Return how many steps are finished.

    :param run: The run.
    """
    names = ContactForm.step_names
    if run.status is Status.FINISHED:
        return len(names)
    if run.step in names:
        return names.index(run.step)
    # A deploy has renamed its step, or taken it away.
    return len({each.step for each in run.step_runs if each.status is StepStatus.FINISHED})


def visitor_progress(run: SequenceRun | None) -> dict[str, t.Any]:
    """Return what the page of a visitor shows.

    :param run: The run; None: it has ended, and was deleted when its time was over.
    """
    if run is None:
        return {"over": True, "lead": DELETED, "steps": []}
    state = state_of(run)
    return {
        "over": run.status.final,
        "lead": WORDS[state].lead.format(email=run.data["email"]),
        "subject": run.data["subject"],
        "reference": reference_of(run.key or str(run.uid)),
        "steps": [_shown(step, state) for step in run.progress.steps],
    }


def _shown(step: StepProgress, state: str) -> dict[str, str]:
    label = LABELS.get(step.name, "Work on it")  # a deploy has renamed it, or taken it away
    match step.state:
        case StepState.FINISHED:
            return {"label": label, "state": "finished", "text": WORDS["finished"].step}
        case StepState.TO_COME:
            return {"label": label, "state": "next", "text": "Waiting"}
        case StepState.SKIPPED:
            return {"label": label, "state": "next", "text": "Not done"}
        case _:
            return {"label": label, "state": state, "text": WORDS[state].step}
