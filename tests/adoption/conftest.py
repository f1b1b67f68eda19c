"""The applications have tests of their own, which are run in a copy of each."""

collect_ignore_glob = ["*/*"]
