"""Files of texts to files of vectors: embedserve embed."""
