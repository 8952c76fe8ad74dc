"""The adapter for KuaiRand."""
