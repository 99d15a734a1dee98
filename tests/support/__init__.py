"""What tests share: reference vectors, toys of the real classes, checkpoints to damage, harnesses."""
