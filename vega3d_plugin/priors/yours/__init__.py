"""A prior of one's own: a function, or features made elsewhere."""
