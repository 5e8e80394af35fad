"""Measure layers, training steps and start-up against their peers, in rounds that take turns: `mednorm bench`.

Every peer has a process of its own, since what differs may be the memory allocator, which is chosen when a process
starts, or the backend of Keras, of which there is one a process. A round asks one after the other, so that a machine
that slows down slows all. `cases` says what is measured, `worker` is the process of a peer, `run` is the rounds.
"""
