"""The one warning category of the library, so that users can filter it or turn it into an error."""


class Vega3dWarning(UserWarning):
    """Something works, but not as the user is likely to expect."""
