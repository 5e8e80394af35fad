"""One network trained once: its settings, its loop, and how a run lies on disk."""
