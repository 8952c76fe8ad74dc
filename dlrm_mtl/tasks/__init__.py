"""Tasks, their losses, and the combination of the losses."""

from dlrm_mtl.core.registry import home

home("loss", __name__)
home("task_weighting", __name__)
