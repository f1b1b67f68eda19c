"""What the tests do not notice: the code is changed in one place at a time, and its tests run."""
