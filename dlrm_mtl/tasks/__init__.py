"""What a model predicts: tasks, their losses, and how these become one."""

from dlrm_mtl.core.registry import home

home("loss", __name__)
home("task_weighting", __name__)
