"""The only readers of files: profiles, model folders, tokenizers, the hub's cache."""
