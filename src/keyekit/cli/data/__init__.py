"""The ``keyekit data`` command: check, measure and look at data."""
