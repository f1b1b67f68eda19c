"""A run moves: started and controlled, claimed, performed, fenced, committed, and what follows.

It knows the session and the rows, and no Celery: it returns what is to be published.
"""
