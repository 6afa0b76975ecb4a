"""Pages, texts, figures and images from plain values; templates hold the markup."""
