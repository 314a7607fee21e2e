"""The REST API: routes, schemas and auth. It knows the ledger, and neither models nor workers."""
