"""Statistics: what the numbers may claim."""
