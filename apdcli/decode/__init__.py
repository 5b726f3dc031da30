"""The decoding algorithms. Knows torch and nothing else: no files, no terminal, no tokenizer."""
