"""What a worker without an engine does: it drives batches, calls webhooks and deletes files whose time has come."""
