"""``small-world``: a small trained video generator of Wan's classes that lies in the package."""
