"""Data and messages of earlier schemas, newer ones, and other revisions of a model."""
