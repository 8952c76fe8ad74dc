"""The adapter for Taobao UserBehavior."""

from dlrm_mtl.prepare.userbehavior import adapter as adapter
