"""How good pictures are, as pure functions of embeddings, probabilities and pixels."""
