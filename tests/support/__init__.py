"""Helpers, doubles of the reference servers, recorded answers, and tables of programs: all that several tests share."""
