"""A local REDCap API server: to try the sync on a real project without the real server."""
