"""A storm: many runs, while processes are killed, the broker flushed and the database restarted.

``bin/storm --help`` tells how to call it. ``place`` says what was asked for, ``servers`` makes the
private database and broker, ``starter`` starts runs, ``sequences`` is what they do, ``crew`` are
the workers, ``nemesis`` harms them, ``strangers`` refer to runs in transactions that stay open,
``ledger`` reads what is left, ``checker`` judges it, ``report`` tells it. ``celery_chain`` is the
same work as a plain Celery chain.
"""
