"""One transformer core, its cache, and what differs between the families."""
