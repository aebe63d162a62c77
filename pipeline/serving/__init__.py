"""Models for programs without Keras: one file, one format."""
