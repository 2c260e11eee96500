"""The REDCap job: one cycle of a sync. Knows REDCap, dicts and sinks; nothing of processes."""
