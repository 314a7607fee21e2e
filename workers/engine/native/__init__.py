"""A Bloom stage in C++, where a compiler or a prebuilt library is at hand. Never required: torch computes it, too."""
