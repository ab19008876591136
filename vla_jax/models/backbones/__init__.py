"""One file a backbone: its sizes, adapter, prompt, and the names of its released weights."""
