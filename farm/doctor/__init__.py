"""Is everything as a farm needs it? Each check says what it found and, unless all is well, what to do.

``server`` asks Redis, ``machine`` looks at this computer. Neither prints: ``farm.cli.doctor`` does.
"""
