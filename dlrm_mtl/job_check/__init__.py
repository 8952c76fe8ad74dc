"""``dlrm-mtl doctor --distributed``: checks between the processes of a job, before hours are spent."""
