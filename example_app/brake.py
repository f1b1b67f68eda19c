"""A brake on what strangers may try: so often in an hour, and no more.

The counts are in the database: they hold for all web processes together, and survive a restart.
"""

from __future__ import annotations

import ipaddress
import time

from flask import request
from sqlalchemy import and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from .extensions import db
from .models import Tries

HOUR = 3600


def is_too_often(what: str, who: str, limit: int) -> bool:
    """Count a try, and tell whether it is one too many within this hour. Commits.

    :param what: What is tried.
    :param who: By whom, or to whom.
    :param limit: How many tries an hour are allowed.
    """
    hour = int(time.time() // HOUR)
    db.session.execute(delete(Tries).where(Tries.hour < hour))
    db.session.commit()
    try:
        db.session.execute(insert(Tries).values(hour=hour, what=what, who=who, number=0))
        db.session.commit()
    except IntegrityError:  # It is not the first try.
        db.session.rollback()
    here = and_(Tries.hour == hour, Tries.what == what, Tries.who == who)
    db.session.execute(update(Tries).where(here).values(number=Tries.number + 1))
    number = db.session.scalars(select(Tries.number).where(here)).one()
    db.session.commit()
    return number > limit


def visitor_network() -> str:
    """Return the network that the request came from: one home has many IPv6 addresses."""
    text = request.remote_addr or ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # The server listens on a socket file, or does not tell.
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
