"""Keras, made fast and repeatable."""
