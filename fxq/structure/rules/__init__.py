"""What each operation says about channels, by family."""
