"""What a checkpoint holds beside CRIU's images."""
