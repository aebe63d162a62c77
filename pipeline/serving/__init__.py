"""Serving: export formats, one file per format."""
