"""The metadata is in setup.cfg; the native kernel will be built here."""

from setuptools import setup

setup()
