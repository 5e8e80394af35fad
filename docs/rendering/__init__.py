"""What `docs/render.py` fills pages with: tables, sentences and figures from results, and output of programs."""
