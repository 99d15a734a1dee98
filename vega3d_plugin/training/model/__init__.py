"""A recipe's model: built, its trainable parts, its shares, restored."""
