"""The six families. Each method is one file; `gossamer.methods.base` says what a method is."""
