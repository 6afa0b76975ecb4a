"""Models on disk: building, loading, saving and converting them."""
