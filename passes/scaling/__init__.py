"""Channels scaled between layers that follow each other: who reads them, what is gained, how factors are found."""
