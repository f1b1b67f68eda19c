import os
import time

from flask_sequence import BaseSequence, Step, step
from notices import db
from notices.models import Notice


class Publish(Step):
    def perform(self):
        notice = Notice(text=self.data["text"])
        db.session.add(notice)
        db.session.flush()
        self.data["notice_id"] = notice.id


@step
def translate(data):
    db.session.add(Notice(text=f"{data['text']} (translated)"))
    db.session.flush()
    time.sleep(float(os.environ.get("TRANSLATION_SECONDS", "0")))  # a slow service


@step
def announce(data):
    db.session.add(Notice(text=f"{data['text']} (announced)"))


class PublishNotice(BaseSequence):
    steps = (Publish, translate, announce)
