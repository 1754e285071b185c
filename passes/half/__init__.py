"""Which operations and values half precision is for."""
