"""One file per benchmark: how its rows are read, and the scorers it has."""
