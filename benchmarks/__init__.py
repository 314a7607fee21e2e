"""Benchmarks: each measures its baseline in the same run, and its last line on stdout is one JSON object."""
