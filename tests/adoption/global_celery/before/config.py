import os

SQLALCHEMY_DATABASE_URI = os.environ.get("DATABASE_URL", "sqlite:///notices.db")
CELERY_BROKER_URL = os.environ.get("BROKER_URL", "redis://localhost:6379/0")
