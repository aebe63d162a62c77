"""One training: network, optimizer, loop, callbacks and checkpoints."""
