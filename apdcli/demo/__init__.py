"""The embedded pair: its weights (`pair/`) and the recipe that made them (`corpus/`, `train`)."""
