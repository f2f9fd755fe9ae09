"""From a few pictures of each class to a classifier: adapted once, then an ordinary network."""
