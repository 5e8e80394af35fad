"""Statistics of a trained network over a population of images: taken exactly, compared, put in place, taken back."""
