from celery import Celery
from flask import Flask
from flask_migrate import Migrate
from flask_sequence import Sequence
from flask_sqlalchemy import SQLAlchemy

app = Flask(__name__)
app.config.from_object("config")
app.config.from_prefixed_env()
db = SQLAlchemy(app)
migrate = Migrate(app, db)
celery = Celery(app.import_name, broker=app.config["CELERY_BROKER_URL"])
celery.conf.update(task_ignore_result=True)
sequence = Sequence(app, celery=celery)

from notices import tasks, views  # noqa: E402, F401
