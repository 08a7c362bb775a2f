"""Checkpoints as the archives of Podman, and back: `container-migration export` and `import`."""
