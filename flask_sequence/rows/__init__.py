"""The tables, every statement, and what tells one database from another.

It knows SQLAlchemy, and of the rest the names of statuses, steps and options. It never commits.
"""
