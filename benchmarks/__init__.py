"""What a step costs here, beside its peers, in one run: ``bin/bench --help``."""
