"""What the numbers may claim."""
