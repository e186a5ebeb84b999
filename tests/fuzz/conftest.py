"""The fuzzer is a program of its own: it changes what it tests."""

collect_ignore = ["fuzz_decoders.py"]
