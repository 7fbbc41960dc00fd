"""Adam on some rows of a table, such as those of an embedding that a batch has named."""
