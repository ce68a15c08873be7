"""Teachers: frozen models that say what they would have said at every token of a student's answer."""
