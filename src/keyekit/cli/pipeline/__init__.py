"""``keyekit pipeline``: stages that start from each other's exports, run, resumed and reported by one command."""
