"""Our farm and other engines on the same weights, prompts, lengths and cores, in one run.

``plan`` says who takes part, ``session`` has them generate in turn, each in its own processes (``host``, ``child``,
``runners``), ``identity`` compares what they said, ``results`` keeps it and ``table`` and ``chart`` show it.

    python -m benchmarks.compare [--model small|560m] [--quick]
"""
