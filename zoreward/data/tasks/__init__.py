"""The papers' tasks, one YAML file each: data, prompt, answers, objective. A user's own file works too."""

from zoreward.data.tasks.files import list_tasks, load_task
from zoreward.data.tasks.task import Counts, Task

__all__ = ["Counts", "Task", "list_tasks", "load_task"]
