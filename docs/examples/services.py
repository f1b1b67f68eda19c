"""Stands for a payment provider and a mail server, and can be made to fail."""

charges = {}
"""What was charged, by the key that was sent."""
mails = []
outages = []
"""Each of them fails one call."""


def charge(amount, *, key):
    """Charge an amount; the same key is charged once."""
    _fail_if_out()
    charges.setdefault(key, amount)
    return f"charge-{key}"


def send_mail(to, text):
    """Send a mail."""
    _fail_if_out()
    mails.append((to, text))


def _fail_if_out():
    if outages:
        raise ConnectionError(outages.pop())
