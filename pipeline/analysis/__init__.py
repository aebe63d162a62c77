"""Analyze a trained network: layers, gradients, feature maps and filters."""
