"""A deployment in one process, whose workers, children, broker and clock do what a test says.

``processes`` stand still and die at named points, ``steps`` is what they perform, ``workers`` have
the real keeper, ``simulation`` holds all of it, ``ledger`` judges what is in the database, and
``scenarios`` are short stories in which one mechanism matters.
"""
