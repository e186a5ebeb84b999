"""Running compressed networks: kernels written in Python, compiled by LLVM for the processor at hand."""
