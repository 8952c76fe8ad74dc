"""The adapter for KuaiRand."""

from dlrm_mtl.prepare.kuairand import adapter as adapter
