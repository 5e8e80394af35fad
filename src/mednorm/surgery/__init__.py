"""Change a network and keep its weights: convert, freeze, fold, centralize, port."""

from mednorm.surgery.centralize import centralize as centralize
from mednorm.surgery.conversion import ConversionReport as ConversionReport
from mednorm.surgery.convert import convert as convert
from mednorm.surgery.fold import fold as fold
from mednorm.surgery.fold_report import FoldReport as FoldReport
from mednorm.surgery.freeze import freeze as freeze
from mednorm.surgery.freeze import is_frozen as is_frozen
from mednorm.surgery.freeze import unfreeze as unfreeze
from mednorm.surgery.freezing import FreezeReport as FreezeReport
from mednorm.surgery.port import port as port
from mednorm.surgery.report import PortedLayer as PortedLayer
from mednorm.surgery.report import PortReport as PortReport
