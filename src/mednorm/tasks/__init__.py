"""The tasks: which images, which network, which loss, which metrics."""

from mednorm.tasks.task import TASKS as TASKS
from mednorm.tasks.task import Prepared as Prepared
from mednorm.tasks.task import Task as Task
from mednorm.tasks.task import find_task as find_task
