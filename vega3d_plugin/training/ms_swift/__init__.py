"""The file for ``--external_plugins`` of ms-swift, alone: ms-swift puts its folder first on the path of modules."""
