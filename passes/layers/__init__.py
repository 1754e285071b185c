"""What passes ask of a layer before they exchange it, and how layers are read, made and exchanged."""
