"""``bin/demo``: real processes, real messages, and a worker that is killed in the middle."""
