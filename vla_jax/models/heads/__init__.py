"""One file a policy head: what the backbone says of a window -> loss and actions."""
