"""Pictures: lists of files, decoding, and the pixels that a model sees."""
