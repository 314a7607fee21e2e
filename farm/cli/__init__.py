"""The ``farm`` command. ``main`` names the subcommands and loads the one that is run."""
