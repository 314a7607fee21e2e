"""The truth about every job, kept in Redis by atomic scripts. See docs/architecture.md.

``jobs`` for whoever asks, ``attempts`` for workers, ``upkeep`` for the keeper, ``streams`` for whoever waits.
"""
