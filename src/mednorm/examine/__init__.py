"""Why a network's normalization fails: what a pass over data shows of each layer, and the rules that judge it."""
