"""One file, one kind of data set: `load(name, folder, test_share, test_seed) -> Dataset`."""
