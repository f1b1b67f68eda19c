"""What the user writes, checked where it is written: steps, options, data, and the registry.

It knows no Flask application, no database and no worker.
"""
