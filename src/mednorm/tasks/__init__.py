"""The tasks: which images, which network, which loss, which metrics."""

from mednorm.tasks.catalogue import TASKS as TASKS
from mednorm.tasks.catalogue import find_task as find_task
from mednorm.tasks.task import Prepared as Prepared
from mednorm.tasks.task import Task as Task
