"""Statistics: what may be concluded from test results."""
