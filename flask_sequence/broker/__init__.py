"""How nudges travel: the publisher, the share of them in a queue, and the embedded broker.

It knows Celery and kombu, and of a run no more than a nudge tells.
"""

from .embedded import embedded_config, make_celery

__all__ = ["embedded_config", "make_celery"]
