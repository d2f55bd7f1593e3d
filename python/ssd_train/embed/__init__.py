"""Images to embeddings: frozen extractors, and the training of one."""
