"""One module for each engine: ``ready`` loads it. See ``contender.Runner``."""
