import os
import time

from celery import Celery, Task, shared_task
from flask import Flask, request
from flask_alembic import Alembic
from flask_sequence import BaseSequence, Sequence, step
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
alembic = Alembic()
sequence = Sequence()


class Entry(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    text = db.Column(db.String(200), nullable=False)
    words = db.Column(db.Integer)


def celery_init_app(app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


@shared_task(ignore_result=True)
def count_words(entry_id):
    entry = db.session.get(Entry, entry_id)
    entry.words = len(entry.text.split())
    db.session.commit()


@step
def publish(data):
    entry = Entry(text=data["text"])
    db.session.add(entry)
    db.session.flush()
    data["entry_id"] = entry.id


@step
def translate(data):
    db.session.add(Entry(text=f"{data['text']} (translated)"))
    db.session.flush()
    time.sleep(float(os.environ.get("TRANSLATION_SECONDS", "0")))  # a slow service


@step
def announce(data):
    db.session.add(Entry(text=f"{data['text']} (announced)"))


class PublishEntry(BaseSequence):
    steps = (publish, translate, announce)


def create_app(**config):
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("DATABASE_URL", "sqlite:///ledger.db")
    app.config["CELERY"] = {
        "broker_url": os.environ.get("BROKER_URL", "redis://localhost:6379/0"),
        "task_routes": {"*": {"priority": 5}},
    }
    app.config.from_prefixed_env()
    app.config.update(config)
    db.init_app(app)
    alembic.init_app(app)
    celery_init_app(app)
    sequence.init_app(app)

    @app.post("/entries")
    def create():
        entry = Entry(text=request.form["text"])
        db.session.add(entry)
        db.session.commit()
        count_words.delay(entry.id)
        return {"id": entry.id}, 201

    @app.post("/published")
    def publish():
        run = PublishEntry.start(text=request.form["text"])
        db.session.commit()
        return {"run": run.id}, 202

    return app
