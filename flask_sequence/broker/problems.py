"""What a person is told of a broker: where it is, and what can never work with it."""

from __future__ import annotations

import importlib.util
import re
import typing as t

from kombu.exceptions import VersionMismatch

from ..errors import SetupError
from .embedded import TRANSPORT

if t.TYPE_CHECKING:
    from celery import Celery

_PACKAGES = {"redis": "redis", "rediss": "redis", "sentinel": "redis", "sqs": "boto3"}
"""The package that a kind of broker needs beside kombu, by the scheme of its address."""
_WHERE = "The address is broker_url in the settings of Celery, or CELERY_BROKER_URL."


def setup_problem(celery: Celery, error: BaseException | None = None) -> SetupError | None:
    """Say what has to be changed before a broker can work; None: nothing is known to be wrong.

    :param celery: The Celery application.
    :param error: What came of it when the broker was used; None: it was not tried yet.
    """
    if isinstance(error, SetupError):
        return error
    scheme = _scheme(celery)
    package = _PACKAGES.get(scheme)
    extra = "redis" if package == "redis" else scheme
    if package is not None and importlib.util.find_spec(package) is None:
        return SetupError(
            f"The broker is {scheme}://..., and the Python package {package} is not installed: run"
            f" pip install 'kombu[{extra}]'."
        )
    error = error or _error_of_transport(celery)
    told = str(error.args[0] if error is not None and error.args else error).rstrip(".")
    if isinstance(error, VersionMismatch):
        return SetupError(f"{told}: run pip install -U 'kombu[{extra}]'.")
    if isinstance(error, KeyError) and told.startswith("No such transport"):
        meant = re.search(r"Did you mean (\w+)", told)
        cure = f"did you mean {meant[1]}://?" if meant else "write redis:// or amqp://."
        return SetupError(f"There is no broker of the kind {scheme}://: {cure} {_WHERE}")
    if isinstance(error, ImportError):
        return SetupError(f"The broker {scheme}:// needs a Python package: {told}. Install it.")
    if isinstance(error, ValueError) and re.match("Port |invalid literal|Database is", told):
        return SetupError(f"The broker's address is wrong: {told}. {_WHERE}")
    return None


def shown_broker(celery: Celery) -> str:
    """Show where a broker is, without its password.

    :param celery: The Celery application.
    """
    if celery.conf.broker_transport == TRANSPORT:
        return f"files in {celery.conf.broker_transport_options['data_folder_in']}"
    return str(celery.connection_for_read().as_uri())


def _scheme(celery: Celery) -> str:
    url: t.Any = celery.conf.broker_write_url or celery.conf.broker_url or ""
    first = url if isinstance(url, str) else next(iter(url), "")
    return str(first).partition("://")[0].lower()


def _error_of_transport(celery: Celery) -> Exception | None:
    try:
        with celery.connection_for_write() as connection:
            transport: t.Any = connection.transport
            assert transport
    except Exception as error:
        return error
    return None
