"""A farm on one machine: an embedded server and the processes around it."""
