"""Image retrieval: pictures of classes that were not trained on, found by an embedding."""
