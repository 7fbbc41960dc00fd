"""What lies on disk: snapshot files, and the data folder with its manifest."""
