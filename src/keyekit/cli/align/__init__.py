"""``keyekit align``: pairs and good examples out of a model's own answers."""
