"""What every frozen prior shares: devices, memory, windows, sizes, fingerprints, parts of a checkpoint."""
