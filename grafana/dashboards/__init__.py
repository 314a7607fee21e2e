"""The dashboards, one a module: what each panel asks, and what its answer means."""
