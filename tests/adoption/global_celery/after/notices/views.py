from flask import request
from notices import app, db
from notices.models import Notice
from notices.sequences import PublishNotice
from notices.tasks import count_words


@app.post("/notices")
def create():
    notice = Notice(text=request.form["text"])
    db.session.add(notice)
    db.session.commit()
    count_words.delay(notice.id)
    return {"id": notice.id}, 201


@app.post("/published")
def publish():
    run = PublishNotice.start(text=request.form["text"])
    db.session.commit()
    return {"run": run.id}, 202
