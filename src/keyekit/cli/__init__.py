"""The ``keyekit`` command. Each sub-command is a module that is imported when it is called."""
