"""What is inside a trained network."""
