"""Questions asked of embeddings."""
