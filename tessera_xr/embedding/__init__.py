"""From a cube to embeddings, and the one Dataset that holds them."""
