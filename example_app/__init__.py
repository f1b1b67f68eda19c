"""A contact form, with its team's inbox: an application that uses flask-sequence in earnest.

.. code-block:: console

    $ flask --app example_app db upgrade
    $ flask --app example_app add-members "Ada Lovelace <ada@example.com>"
    $ FLASK_INBOX_PASSWORD=choose-one flask --app example_app run
    $ flask --app example_app sequence worker -c 2        (in another terminal)

It needs no server. ``DATABASE_URL`` and ``CELERY_BROKER_URL`` put it on PostgreSQL and Redis; see
``example_app.app`` for the rest of its settings.
"""

from .app import create_app

__all__ = ["create_app"]
