"""The version of this package; the test of the packaging holds it to the project's."""

__version__ = "0.1.0"
