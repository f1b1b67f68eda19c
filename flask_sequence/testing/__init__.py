"""Run in a test what a worker would: the same engine, in place, without Celery."""

from .draining import drain

__all__ = ["drain"]
