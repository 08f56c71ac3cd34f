"""Child processes that a backend starts, and how they are told what to do."""
