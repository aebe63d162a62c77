"""Errors, atomic files, and output to terminals."""
