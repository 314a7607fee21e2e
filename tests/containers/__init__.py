"""Images and compose.yaml: read, built, run."""
