"""Statistics of a trained network over a population of images: taken exactly, compared, put in place, taken back."""

from mednorm.population.adapt import adapt as adapt
from mednorm.population.recalibrate import recalibrate as recalibrate
from mednorm.population.report import AdaptReport as AdaptReport
from mednorm.population.report import RecalibrationReport as RecalibrationReport
