"""The test bed: kind where nothing but package registries can be reached."""
