"""Commands that are no stages: `python -m pipeline` lists them."""
