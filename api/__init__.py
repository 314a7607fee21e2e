"""The farm over HTTP: jobs, their events and their results. It knows the ledger, and neither models nor workers."""
