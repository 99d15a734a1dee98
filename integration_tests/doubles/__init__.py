"""Small models of our own with the method names, call order, shapes and traps of hosts that cannot be installed."""
