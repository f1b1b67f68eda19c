"""The extensions, which know no application yet."""

from __future__ import annotations

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_sequence import Sequence


class Base(DeclarativeBase):
    """The base of the application's models."""


db = SQLAlchemy(model_class=Base)
migrate = Migrate()
sequence = Sequence()
