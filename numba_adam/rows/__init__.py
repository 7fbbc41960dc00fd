"""Adam on some rows of a table, such as the rows of an embedding that a batch uses."""
