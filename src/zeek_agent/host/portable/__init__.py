"""Readers of host state by psutil, for systems without Linux's kernel interfaces."""
