"""Sync functions as people have them, to be run under the supervisor unchanged."""
