"""From a data set's source to pixels."""
