"""Tests of the engine: a small random Bloom, a real engine process, and transformers as the reference."""
