import os

from celery import Celery
from flask import Flask
from flask_migrate import Migrate
from flask_sequence import Sequence
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
migrate = Migrate()
celery = Celery(
    "board",
    broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"),
    include=["board.tasks"],
)
sequence = Sequence(celery=celery)


def create_app(**config):
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("DATABASE_URL", "sqlite:///board.db")
    app.config.from_prefixed_env()
    app.config.update(config)
    db.init_app(app)
    migrate.init_app(app, db, directory="db/migrations")
    sequence.init_app(app)

    from board.views import board

    app.register_blueprint(board)
    return app
