"""What everyone agrees on: clips, seams, settings, Prior, Fuser, errors, pixel statistics, tables of names."""
