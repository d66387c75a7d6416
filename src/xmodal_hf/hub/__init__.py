"""To the Hub and back: cards, published folders, sentence-transformers exports."""
