"""What an engine has computed since it started: tokens by what they were for, and how its steps went.

Every token that a step computes for a prompt or for what is resumed is counted once, and so is every token that it
samples. What becomes of the latter the engine does not know: ``workers.account`` does.
"""

from __future__ import annotations

from workers.engine.distribution import Distribution
from workers.engine.scheduler import Step

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Doublings, as kernels and graphs are chosen, up to the largest number of slots that pays."""
STEP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""A tiny model's millisecond, a large one's 5 to 50 ms on GPUs, a second on CPUs; beyond 10 s the watchdog is near."""


class Tally:
    """Counts of one engine. Not thread-safe."""

    def __init__(self) -> None:
        self.prompt = 0
        """Prompt tokens prefilled for the first time,"""
        self.resumed = 0
        """tokens of prompts and earlier attempts that an earlier attempt had computed,"""
        self.recomputed = 0
        """and tokens that this engine had computed before their sequence was preempted."""
        self.sampled = 0
        self.endings = 0
        """Of the sampled ones: those that ended a text and belong to none."""
        self.batch_sizes = Distribution(BATCH_BOUNDS)
        self.step_seconds = Distribution(STEP_BOUNDS)

    def note(self, step: Step, seconds: float) -> None:
        """Count a step, before the scheduler learns that it is complete."""
        for chunk in step.chunks:
            sequence = chunk.sequence
            again = max(0, min(chunk.count, sequence.peak - sequence.computed))
            self.recomputed += again
            if sequence.is_resumed:
                self.resumed += chunk.count - again
            else:
                self.prompt += chunk.count - again
        self.sampled += len(step.sampled)
        if step.decodes:
            self.batch_sizes.observe(len(step.decodes))
        self.step_seconds.observe(seconds)
