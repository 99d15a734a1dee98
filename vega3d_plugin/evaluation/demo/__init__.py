"""Two small models on questions about rendered rooms, with and without the branch, and a check of every part."""
