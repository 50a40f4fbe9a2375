"""Other servers of image embeddings, each in a virtual environment of its own, run on loopback."""
