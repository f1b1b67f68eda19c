"""Inside a Celery worker: its signals, the one task, the keeper, and the pool's children.

It knows Celery's worker and the engine below, and prints nothing for a person.
"""
