import os

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
migrate = Migrate()


def create_app(**config):
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("DATABASE_URL", "sqlite:///board.db")
    app.config.from_prefixed_env()
    app.config.update(config)
    db.init_app(app)
    migrate.init_app(app, db, directory="db/migrations")

    from board.views import board

    app.register_blueprint(board)
    return app
