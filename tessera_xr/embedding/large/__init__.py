"""Areas larger than memory, region by region into a store, resumable."""
