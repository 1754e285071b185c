"""Plans: what the engine runs, as data, and how they are built."""
