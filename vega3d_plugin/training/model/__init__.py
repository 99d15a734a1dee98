"""A recipe's model: built, its trainable parts, its gates, restored."""
