"""What the passes that compress weights share: which layers they may touch, and layers written as pairs."""
