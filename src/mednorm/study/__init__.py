"""A study: its grid of arms, its runs, and what their numbers say."""
