"""Less memory for activations: compute again in the backward pass what follows cheaply from what is kept anyway."""

from mednorm.lean.activations import lean_activations as lean_activations
from mednorm.lean.memory import activation_memory as activation_memory
from mednorm.lean.network import is_lean as is_lean
from mednorm.lean.network import make_lean as make_lean
from mednorm.lean.network import make_ordinary as make_ordinary
from mednorm.lean.report import ActivationMemory as ActivationMemory
from mednorm.lean.report import LayerMemory as LayerMemory
