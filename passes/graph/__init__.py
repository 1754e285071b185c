"""Small readings and writings of graphs that several passes share."""
