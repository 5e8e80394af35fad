"""Change a network, keep its weights."""

from mednorm.surgery.port import port as port
from mednorm.surgery.report import PortedLayer as PortedLayer
from mednorm.surgery.report import PortReport as PortReport
