"""One model's layers shared by several processes, a device each: every rank holds whole heads of every layer."""
