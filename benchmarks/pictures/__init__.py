"""The pictures of README and docs, taken of a farm that runs: ``make screenshots``."""
