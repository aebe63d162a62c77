"""Keras with fast and deterministic training and prediction."""
