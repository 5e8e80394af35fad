"""How many images a training step should have: memory measured, noise of the statistics weighed against it."""

from mednorm.advise.advice import Advice as Advice
from mednorm.advise.batch_size import advise_batch_size as advise_batch_size
