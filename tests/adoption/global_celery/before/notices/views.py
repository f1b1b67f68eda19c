from flask import request
from notices import app, db
from notices.models import Notice
from notices.tasks import count_words


@app.post("/notices")
def create():
    notice = Notice(text=request.form["text"])
    db.session.add(notice)
    db.session.commit()
    count_words.delay(notice.id)
    return {"id": notice.id}, 201
