"""Compiling at run time: which processor, how code is written for it, and where what was compiled is kept."""
