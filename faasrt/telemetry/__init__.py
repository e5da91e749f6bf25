"""Sinks for the records of `faasrt.events`, one small file each."""
