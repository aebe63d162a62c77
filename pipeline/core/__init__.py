"""Errors, whole-or-nothing files, and what a terminal shows."""
